#!/usr/bin/env bash
# Ours and PyTorch in turn on one machine: compare.sh [models] [dtypes] [rounds], by default "tiny tiny-moe" "f32 bf16" 3.
# Needs bench_train_step built and setup.sh run. The table gives, for each model and dtype, the best of the rounds of
# every program and our ratio to the quickest peer; the JSON lines stay in $OUT (default build/peers.jsonl).
#
#   VENV=build/peers-venv BENCH=build/release/bin/bench_train_step THREADS=2 STEPS=10 SEQUENCE=512 MICRO_BATCH=8
#   RUNS="eager compile" EXPERTS="loop grouped"    how PyTorch runs; compiling takes a minute or two a run, not counted
set -euo pipefail
cd "$(dirname "$0")/../.."
models=${1:-tiny tiny-moe} dtypes=${2:-f32 bf16} rounds=${3:-3}
venv=${VENV:-build/peers-venv} bench=${BENCH:-build/release/bin/bench_train_step}
out=${OUT:-build/peers.jsonl} threads=${THREADS:-2} runs=${RUNS:-eager compile} experts_of_moe=${EXPERTS:-loop grouped}
size=(--threads "$threads" --steps "${STEPS:-10}" --sequence "${SEQUENCE:-512}" --micro-batch "${MICRO_BATCH:-8}")

# What PyTorch's tuning guide asks for on a CPU: as many threads as cores, pinned, and an allocator that keeps memory
# between steps: tcmalloc or jemalloc where installed, else libc's told not to give it back.
export OMP_NUM_THREADS=$threads
peer_environment=(MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184)
for library in libtcmalloc_minimal.so.4 libtcmalloc.so.4 libjemalloc.so.2; do
  path=$(ldconfig -p | awk -v name="$library" '$1 == name {print $NF; exit}')
  [ -n "$path" ] && peer_environment=(LD_PRELOAD="$path") && break
done
pinned=(taskset -c "0-$((threads - 1))")

: >"$out"
ours() { "${pinned[@]}" "$bench" --model "$1" --dtype "$2" "${size[@]}" --json >>"$out"; }
peer() { env "${peer_environment[@]}" "${pinned[@]}" "$venv/bin/python" -W ignore bench/peers/train_step.py "${size[@]}" "$@" >>"$out"; }

for ((round = 1; round <= rounds; ++round)); do
  for model in $models; do
    expert_kernels=loop
    [ "$model" = tiny-moe ] && expert_kernels=$experts_of_moe
    for dtype in $dtypes; do
      ours "$model" "$dtype"
      peer_dtypes=$dtype
      [ "$dtype" = bf16 ] && peer_dtypes="bf16 bf16-weights"
      for peer_dtype in $peer_dtypes; do
        for experts in $expert_kernels; do
          for run in $runs; do
            peer --model "$model" --dtype "$peer_dtype" --run "$run" --experts "$experts" ||
              echo "skipped: $model $peer_dtype $run $experts does not run on this PyTorch" >&2
          done
        done
      done
    done
  done
done
python3 bench/peers/ratios.py "$out"
