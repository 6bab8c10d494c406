#!/usr/bin/env bash
# Installs what building and running need, from Debian's packages. Does nothing when all is there.
#
# usage: launch/setup.sh [PACKAGE...]   further packages: tools that only some checks need
set -euo pipefail

packages=(
  g++ cmake ninja-build make pkg-config
  openmpi-bin libopenmpi-dev
  libhdf5-dev
  libboost-program-options-dev libboost-context-dev
  libdnnl-dev ocl-icd-opencl-dev  # without OpenCL's headers CMake does not find Debian's oneDNN
  libopenblas-dev libhwy-dev
  libfmt-dev nlohmann-json3-dev libsentencepiece-dev libxxhash-dev
  libjpeg62-turbo-dev libpng-dev
  libgtest-dev libgmock-dev libbenchmark-dev
  "$@"
)

say() { echo "setup: $*" >&2; }

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  say "this is no Debian system. Install what these packages hold, if it is not there yet: ${packages[*]}"
  exit 0
fi

installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null || true)
missing=()
for package in "${packages[@]}"; do
  grep -qx "installed $package" <<<"$installed" || missing+=("$package")
done
((${#missing[@]})) || exit 0

say "to be installed: ${missing[*]}"
as_root=()
if [[ $(id -u) != 0 ]]; then
  command -v sudo >/dev/null || {
    say "this needs root. As root, run: apt-get install --no-install-recommends ${missing[*]}"
    exit 1
  }
  as_root=(sudo)
fi
install() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}
# The lists of a fresh machine may be old or absent.
install || { "${as_root[@]}" apt-get update -qq && install; } || {
  say "apt-get failed. Is there a network, and do the sources in /etc/apt name Debian's main archive?"
  exit 1
}
