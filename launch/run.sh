#!/usr/bin/env bash
# Starts orchard on several ranks of this machine, with threads and binding that fit its cores.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: launch/run.sh [-n RANKS] [--bind none|cores] COMMAND [OPTIONS...]

  launch/run.sh -n 2 train --recipe nano-moe --training-set DATA --run-folder RUN

  -n RANKS     processes that share the work (default 1)
  --bind       none: the system moves threads as it likes; cores: each rank keeps a block of cores.
               Default: cores on machines with several memory domains, else none.

Each rank gets cores/RANKS threads; OMP_NUM_THREADS, where it is set, overrides that.
COMMAND and OPTIONS go to orchard: see `launch/run.sh --help`, `launch/run.sh train --help`.
USAGE
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
program=
for candidate in "$here/../build/release/bin/orchard" "$here/../../../bin/orchard" "$(command -v orchard || true)"; do
  if [[ -x $candidate ]]; then program=$candidate && break; fi
done

ranks=1 bind=
while (($#)); do
  case $1 in
    -n) ranks=${2:?-n needs a number of ranks}; shift 2 ;;
    --bind) bind=${2:?--bind needs none or cores}; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) break ;;
  esac
done
[[ $ranks =~ ^[1-9][0-9]*$ ]] || { echo "run.sh: -n $ranks: the number of ranks is a positive whole number" >&2; exit 78; }
[[ -n $program ]] || { echo "run.sh: orchard is not built yet: run launch/build.sh release" >&2; exit 78; }
if [[ -z $bind ]]; then
  domains=$(find /sys/devices/system/node -maxdepth 1 -name 'node[0-9]*' 2>/dev/null | wc -l)
  bind=$([[ $domains -gt 1 ]] && echo cores || echo none)
fi

# nproc itself listens to OMP_NUM_THREADS.
cores=$(env -u OMP_NUM_THREADS nproc)
threads=$((cores / ranks > 0 ? cores / ranks : 1))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
((ranks > 1)) || exec "$program" "$@"

# A bare mpirun would pin a rank of up to two to one core, all its threads included. A core here is
# what nproc counts: a hardware thread.
options=(-n "$ranks" --use-hwthread-cpus)
if ((ranks > cores)); then
  options+=(--oversubscribe --bind-to none)
  export OMP_WAIT_POLICY=passive  # a thread that waits must not keep the core from one that works
elif [[ $bind == cores ]]; then
  options+=(--map-by "slot:PE=$threads" --bind-to hwthread)
else
  options+=(--bind-to none)
fi
# Containers run as root; mpirun refuses that unless told twice.
if [[ $(id -u) == 0 ]]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
# Debian's PMIx asks munge first who a rank is, and where no munged runs asks again for 2.3 s before it looks at the user.
[[ -n ${SLURM_JOB_ID:-} ]] || export PMIX_MCA_psec=${PMIX_MCA_psec:-^munge}
# Ranks see a terminal even where mpirun's own output goes to a file.
[[ -t 1 ]] || export TERM=dumb
exec mpirun "${options[@]}" "$program" "$@"
