#!/usr/bin/env bash
# Trains a small multimodal mixture of experts through all three stages on the shipped sample, and
# checks that it has learnt to look at pictures.
#
# usage: launch/demo.sh [--seed N] [--folder FOLDER]
#
# Everything goes into FOLDER (runs/demo, which is made anew): the packed training set, checkpoints,
# metrics and report.html. Ends with an error unless the held-out loss of each stage ends at or below
# 0.9 of its start, and swapping pictures between held-out samples costs more than three standard
# errors.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
seed=1 folder=runs/demo
while (($#)); do
  case $1 in
    --seed) seed=${2:?--seed needs a number}; shift 2 ;;
    --folder) folder=${2:?--folder needs a path}; shift 2 ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0"; [[ $1 == -h || $1 == --help ]] && exit 0 || exit 78 ;;
  esac
done

begin() { printf '\n== %s (%d s so far)\n' "$1" "$SECONDS"; }
orchard=build/release/bin/orchard

begin "set up"
launch/setup.sh
begin "build"
launch/build.sh release orchard

# Only a folder that an earlier demo made is cleared away.
if [[ -e $folder ]]; then
  [[ -f $folder/.demo ]] || { echo "demo.sh: $folder exists and is not of an earlier demo; name another --folder" >&2; exit 78; }
  rm -rf "$folder"
fi
mkdir -p "$folder"
touch "$folder/.demo"

begin "pack the sample"
$orchard pack data/sample --vocabulary 384 --out "$folder/training_set"
begin "train"
launch/run.sh -n 2 train --recipe nano-moe --seed "$seed" --training-set "$folder/training_set" --run-folder "$folder"
begin "evaluate"
OMP_NUM_THREADS=$(env -u OMP_NUM_THREADS nproc) $orchard eval --run-folder "$folder" --report
begin "claims"
$orchard inspect "$folder" --check-claims || { echo "demo.sh: the run did not learn what it should" >&2; exit 1; }
printf '\nAll claims hold. %d min %02d s in all. Open %s/report.html\n' $((SECONDS / 60)) $((SECONDS % 60)) "$folder"
