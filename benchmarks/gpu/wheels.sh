#!/usr/bin/env bash
# Fill a folder with all that benchmarks/gpu/run.sh installs on a machine without network:
#
#     bash benchmarks/gpu/wheels.sh FOLDER
#
# Run it under the Python version and on the kind of system (Linux, x86-64) that the other machine has. The torch that
# pip takes there by default brings CUDA and Triton; DeepSpeed comes as source and is built here, its kernels at first
# use.
set -euo pipefail
if [ $# -ne 1 ]; then
    echo "usage: bash benchmarks/gpu/wheels.sh FOLDER" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
python3 -m pip wheel --disable-pip-version-check --wheel-dir "$1" \
    -r "$root/requirements.txt" "triton>=3" "setuptools>=77" wheel ninja
du -sh "$1"
