#!/usr/bin/env bash
# Checks that clang-format would change nothing, and runs clang-tidy with the checks of .clang-tidy; any
# finding fails.
#
# usage: tests/tidy.sh [--all]
#
# clang-format checks every file. clang-tidy checks the sources that differ from the commit before, at
# most 40 of them (a source takes 4 s of a core); for a changed header, a source that includes it.
# --all checks every source. Needs the release build's compile_commands.json.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
most=40
say() { echo "tidy: $*" >&2; }

case ${1:-} in
  '' | --all) ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0"; [[ $1 == -h || $1 == --help ]] && exit 0 || exit 78 ;;
esac

# Another version has other opinions.
format_version=14
if ! command -v clang-format >/dev/null; then
  say "clang-format is not installed (Debian's package clang-format), so no formatting was checked"
elif ! clang-format --version | grep -q " version $format_version\\."; then
  say "the files are formatted by clang-format $format_version, which this one is not: no formatting was checked"
else
  git ls-files -z '*.cpp' '*.h' '*.cu' | xargs -0 clang-format --dry-run -Werror
fi

command -v clang-tidy >/dev/null || {
  say "clang-tidy is not installed (Debian's package clang-tidy), so no source was checked"
  exit 0
}

# A source that includes the header: the one of its name, or the first.
source_of() {
  local own=${1%.h}.cpp
  if [[ -f $own ]]; then echo "$own"; else git grep -lF "#include \"$1\"" -- '*.cpp' | sed -n 1p; fi
}

changed() {
  local file
  git diff --name-only --diff-filter=d HEAD~1 -- '*.cpp' '*.h' | while read -r file; do
    if [[ $file == *.h ]]; then source_of "$file"; else echo "$file"; fi
  done
}

if [[ ${1:-} == --all ]]; then
  sources=$(git ls-files '*.cpp') most=1000000
elif git rev-parse -q --verify HEAD~1 >/dev/null; then
  sources=$(changed | sort -u)
else
  say "there is no commit before this one to compare with; tests/tidy.sh --all checks everything"
  exit 0
fi

# What this build does not compile cannot be checked.
mapfile -t files < <(for file in $sources; do
  ! grep -qF "\"file\": \"$PWD/$file\"" build/release/compile_commands.json || echo "$file"
done)
((${#files[@]})) || exit 0
if ((${#files[@]} > most)); then
  say "${#files[@]} sources changed: the first $most are checked; tests/tidy.sh --all checks all"
fi
printf '%s\0' "${files[@]:0:most}" |
  xargs -0 -n 1 -P "$(env -u OMP_NUM_THREADS nproc)" clang-tidy -p build/release --quiet 2>&1 |
  sed '/^[0-9]* warnings\{0,1\} generated\.$/d'
