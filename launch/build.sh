#!/usr/bin/env bash
# usage: launch/build.sh PRESET [TARGET...]
#
# Configures and builds a preset of CMakePresets.json in build/PRESET, all targets unless some are named.
set -euo pipefail

preset=${1:?name a preset: release, debug, asan or cuda}
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."

generator=()
# A folder that is already configured keeps its generator.
if [[ ! -f build/$preset/CMakeCache.txt ]] && command -v ninja >/dev/null; then generator=(-G Ninja); fi
cmake --preset "$preset" "${generator[@]}"

# A compiler may need 1.5 GB: as many at once as cores and free memory allow.
cores=$(env -u OMP_NUM_THREADS nproc)
gigabytes=$(awk '/^MemAvailable/ { print int($2 / 1500000) }' /proc/meminfo)
jobs=$((gigabytes < 1 ? 1 : gigabytes < cores ? gigabytes : cores))
targets=()
for target in "$@"; do targets+=(--target "$target"); done
cmake --build --preset "$preset" --parallel "$jobs" "${targets[@]}"
