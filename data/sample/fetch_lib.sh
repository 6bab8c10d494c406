# Shared by fetch.sh and fetch_large.sh; sourced, not run.

PYTHON=${PYTHON:-python3}

die() { echo "${0##*/}: $*" >&2; exit 1; }

# need PROGRAM:PACKAGE... - stop early and name what to install.
need() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  ((${#missing[@]} == 0)) || die "please install: ${missing[*]}"
}

# need_python MODULE:PACKAGE...
need_python() {
  local pair missing=()
  for pair in "$@"; do
    "$PYTHON" -c "import ${pair%%:*}" 2>/dev/null || missing+=("${pair#*:}")
  done
  ((${#missing[@]} == 0)) || die "please install: ${missing[*]} (or set PYTHON to an interpreter that has them)"
}

# versions DEB... - one line of name and version for each.
versions() {
  # shellcheck disable=SC2016  # the format is dpkg's, not the shell's
  local deb; for deb in "$@"; do dpkg-deb -W --showformat '${Package} ${Version}\n' "$deb"; done
}

# unpack WORK PACKAGE... - download each package once and unpack all into
# WORK/root. Nothing is installed and no root rights are needed. The versions
# used are written to WORK/versions.txt.
unpack() {
  local work=$1 package
  shift
  mkdir -p "$work/debs/partial" "$work/root"
  for package in "$@"; do
    if ! compgen -G "$work/debs/${package}_*.deb" >/dev/null; then
      # Half a file of an interrupted call must not look like a whole one. Root's apt would complain
      # that its helper's account cannot write here.
      rm -f "$work/debs/partial"/*
      (cd "$work/debs/partial" && apt-get download -q -o APT::Sandbox::User="$(id -un)" "$package" >&2)
      mv "$work/debs/partial/${package}"_*.deb "$work/debs"
    fi
    dpkg -x "$work/debs/${package}"_*.deb "$work/root"
    versions "$work/debs/${package}"_*.deb
  done >"$work/versions.txt.new"
  mv "$work/versions.txt.new" "$work/versions.txt"
}

# squeeze DATA - make the pictures small. Clip art gets 64 colours, which at
# this size cannot be told from the original; pages have few levels already.
# Higher optipng levels were tried: the same bytes for several times the work.
squeeze() {
  # pngquant exits with 98 where it left a picture as it was: not an error here.
  find "$1" -path '*/clipart/*' -name '*.png' -print0 |
    xargs -0 -r -P2 -n 40 pngquant --ext .png --force --skip-if-larger --speed 3 64 -- || true
  find "$1" -name '*.png' -print0 | xargs -0 -r -P2 -n 20 optipng -quiet -o1 -strip all
}
