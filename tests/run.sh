#!/usr/bin/env bash
# Sets up, builds everything and runs all tests.
#
# usage: tests/run.sh [--full]
#
# --full (at most two hours) adds clang-tidy on every source, the tests under the address and
# undefined-behaviour sanitizers, every layout, and the demo.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
full=no
case ${1:-} in
  '') ;;
  --full) full=yes ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0"; [[ $1 == -h || $1 == --help ]] && exit 0 || exit 78 ;;
esac

# Options of the caller's own runs must not reach the tests.
for variable in "${!ORCHARD_@}"; do unset "$variable"; done

launch/setup.sh
launch/setup.sh python3-numpy python3-h5py || true  # ctest skips score_test where they are missing
launch/build.sh release
ctest --preset release -j2
if [[ $full == yes ]]; then
  launch/setup.sh clang-tidy || true  # tidy.sh says so where it is missing
  tests/tidy.sh --all
  ctest --preset release -C full -L full
  launch/build.sh asan
  # Open MPI and oneDNN keep what they allocate until the process ends.
  ASAN_OPTIONS=detect_leaks=0 ctest --preset asan -j2
  launch/demo.sh --folder runs/full_test_demo
fi
