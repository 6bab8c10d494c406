#!/usr/bin/env bash
# Installs PyTorch into a virtual environment of its own: setup.sh [folder], by default build/peers-venv.
# On x86-64 the wheels of PyPI bring CUDA along (3 GB); where it can be reached, the CPU index is lighter:
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu bench/peers/setup.sh
set -euo pipefail
venv=${1:-$(dirname "$0")/../../build/peers-venv}
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch${TORCH_VERSION:+==$TORCH_VERSION}"
# PyTorch looks for it; only some of the wheels ask for it. It may be absent from a CPU index.
"$venv/bin/pip" install --quiet numpy
# torch.compile writes C++ that includes Python's headers, and compiles it when it runs.
if ! "$venv/bin/python" -c 'import os, sysconfig; exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' ||
  ! command -v "${CXX:-g++}" >/dev/null; then
  echo "torch.compile will not run: install g++ and the headers of $(python3 --version) (Debian: python3-dev)" >&2
fi
"$venv/bin/python" -c 'import torch; print("PyTorch", torch.__version__, torch.backends.cpu.get_cpu_capability())'
