#!/usr/bin/env bash
# Sets up, builds everything and runs the tests, which take ten minutes on two cores.
#
# usage: tests/run.sh [--full]
#
# --full (at most two hours) adds clang-format, clang-tidy on every source, the tests of kernels with the
# emulator's race checker in every order of threads and copies, every layout, and every toy on emulated GPUs,
# the tests under the address and undefined-behaviour sanitizers, and the demo.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
full=no
case ${1:-} in
  '') ;;
  --full) full=yes ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0"; [[ $1 == -h || $1 == --help ]] && exit 0 || exit 78 ;;
esac

# Options of the caller's own runs must not reach the tests.
for variable in "${!ORCHARD_@}"; do unset "$variable"; done

launch/setup.sh
launch/setup.sh python3-numpy python3-h5py || true  # ctest skips score_test where they are missing
launch/build.sh release
ctest --preset release -j2
if [[ $full == yes ]]; then
  launch/setup.sh clang-tidy clang-format || true  # tidy.sh says so where they are missing
  tests/tidy.sh --all
  # same_precision measures errors, of kernels that the others run, too.
  for order in fifo reverse random; do
    for completion in lazy eager random_completion; do
      policy=races,$order,$completion,seed=1
      echo "tests of kernels on the emulator with $policy"
      ORCHARD_SIMT_POLICY=$policy ctest --preset release -j2 --label-regex kernels --exclude-regex '_races|same_precision'
    done
  done
  ctest --preset release -C full -L full
  launch/build.sh asan
  # Open MPI and oneDNN keep what they allocate until the process ends. The race checker's own code is in
  # other tests, too; under sanitizers it would take half an hour more.
  ASAN_OPTIONS=detect_leaks=0 ctest --preset asan -j2 --exclude-regex _races
  launch/demo.sh --folder runs/full_test_demo
fi
