#!/usr/bin/env bash
# Everything worth knowing on a machine with a GPU, in one run: kernel tests, benchmarks, training.
#
# usage: bench/gpu.sh BUNDLE OUT [SECONDS]
#
# Ends with an error where a test failed. BUNDLE is what launch/bundle.sh packed (preset cuda), unpacked; logs go into OUT. Kernel tests come first and may
# take a third of SECONDS (300 unless given); what does not fit is left out, and said.
set -uo pipefail

bundle=${1:?name the folder of a bundle}
out=${2:?name a folder for the logs}
limit=${3:-300}
mkdir -p "$out"
run() { timeout "$((limit - SECONDS < 1 ? 1 : limit - SECONDS))" "$bundle/run" "$@"; }

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader | tee "$out/machine.txt"

for test in "$bundle"/bin/*_test; do
  name=$(basename "$test")
  if ((SECONDS > limit / 3)); then echo "left out: $name"; continue; fi
  timeout 60 "$bundle/run" "$name" --gtest_filter='*/cuda_*:*Cuda*' >"$out/$name.log" 2>&1
  code=$?
  summary=$(grep -E '^\[  (PASSED|FAILED)  \]|^ *[0-9]+ FAILED' "$out/$name.log" | head -1)
  printf '%-32s exit %-4s %s\n' "$name" "$code" "$summary"
done | tee "$out/tests.txt"

for program in bench_gpu bench_train_step; do
  [[ -x $bundle/bin/$program ]] || continue
  if [[ $program == bench_gpu ]]; then run bench_gpu --json | tee "$out/bench_gpu.jsonl"; continue; fi
  for model in tiny tiny-moe; do
    for dtype in f32 bf16; do
      run bench_train_step --device cuda --model $model --dtype $dtype --sequence 2048 --micro-batch 16 --steps 10 ||
        echo "bench_train_step $model $dtype: exit $?"
    done
  done 2>&1 | tee "$out/bench_train_step.txt"
done
echo "$SECONDS s"
# 77: all of its tests were skipped, as those of NCCL where it is not installed.
! grep -qvE " exit (0|77) |^left out" "$out/tests.txt"
