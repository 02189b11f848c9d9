#!/usr/bin/env bash
# Everything that wants to be known of a CUDA GPU, in one table and within 8 minutes:
#   bash benchmarks/gpu_check.sh [--packages DIR] [--json FILE] [--device cuda] [--small]
# Nothing is installed. torch has to be there; of the other packages those that this Python has, or
# that DIR has: a folder of packages, or a virtual environment. PYTHON names another Python.
set -u
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu_check.py "$@"
