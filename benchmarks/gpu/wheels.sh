#!/usr/bin/env bash
# Compile for sm_80 and sm_90, without a GPU, the other libraries' fused kernels that the proof compares with ours:
#
#     bash benchmarks/gpu/wheels.sh FOLDER [APEX_CHECKOUT]
#
# FOLDER is what environment.sh has made. FOLDER/wheels gets NVIDIA's apex, with FusedAdam, FusedLayerNorm and the fused
# linear layer, and DeepSpeed with its FusedAdam compiled, in place of the one without; all wheels together must stay
# within 64 MiB. If interrupted, it resumes when started again. It needs the nvcc of torch's own CUDA release, and takes
# headers that a toolkit may lack from FOLDER/env. MAX_JOBS (1) may be set.
set -euo pipefail
if [ $# -lt 1 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
folder=$(cd "$1" && pwd)
checkout=${2:+$(cd "$2" && pwd)}
python=$folder/env/bin/python wheels=$folder/wheels build=$folder/build
architectures="sm_80 sm_90"
export TORCH_CUDA_ARCH_LIST="8.0;9.0" MAX_JOBS=${MAX_JOBS:-1} PATH=$folder/env/bin:$PATH

fail() { echo "wheels.sh: $1" >&2; exit 1; }

"$python" -c 'import torch' 2>/dev/null || fail "there is no torch in $folder/env: run environment.sh $folder first."
command -v nvcc >/dev/null || fail "there is no nvcc: install the CUDA toolkit that this torch was built with."
# The nvcc on the path may be a wrapper: ask it where the toolkit is.
CUDA_HOME=${CUDA_HOME:-$(nvcc --dryrun -x cu -c /dev/null 2>&1 | sed -n 's|^#\$ TOP=\(.*\)/bin/\.\.$|\1|p')}
CPATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13/include
cuobjdump=$("$python" -c 'from triton import knobs; print(knobs.nvidia.cuobjdump.path)')
export CUDA_HOME CPATH
mkdir -p "$build"

# compiled WHEEL MODULE...: whether the wheel exists and has each module's machine code for every architecture
compiled() {
    local wheel=$1 module code
    shift
    [ -f "$wheel" ] || return 1
    for module in "$@"; do
        rm -rf "$build/look" && mkdir "$build/look"
        "$python" -m zipfile -e "$wheel" "$build/look"
        code=$(find "$build/look" -name "$module.*.so" -exec "$cuobjdump" --list-elf {} +)
        for architecture in $architectures; do
            grep -q "\.$architecture\." <<<"$code" || { echo "$wheel: $module is not for $architecture" >&2; return 1; }
        done
    done
    rm -rf "$build/look"
}

one() { ls "$wheels"/$1 2>/dev/null | head -n 1; }

apex=(amp_C fused_layer_norm_cuda fused_dense_cuda)
if ! compiled "$(one 'apex-*.whl')" "${apex[@]}"; then
    PYTHON=$python BUILD=$build WHEELS=$wheels "$here/../../cluster/gpu/build_apex.sh" ${checkout:+"$checkout"}
    compiled "$(one 'apex-*.whl')" "${apex[@]}" || fail "apex was built without the modules that it is needed for."
fi

deepspeed=$(grep '^deepspeed' "$here/brought.txt")
if ! compiled "$(one 'deepspeed-*-linux*.whl')" fused_adam_op; then
    # Without a GPU DeepSpeed would choose the CPU as its accelerator.
    DS_ACCELERATOR=cuda DS_BUILD_FUSED_ADAM=1 "$python" -m pip wheel -v --no-deps --no-build-isolation --no-cache-dir \
        --no-binary deepspeed -w "$build" "$deepspeed"
    compiled "$(ls "$build"/deepspeed-*-linux*.whl)" fused_adam_op || fail "DeepSpeed was built without FusedAdam."
    rm -f "$wheels"/deepspeed-*.whl
    mv "$build"/deepspeed-*-linux*.whl "$wheels"
fi

kilobytes=$(du -sk "$wheels" | cut -f1)
echo "$wheels: $((kilobytes / 1024)) of at most 64 MiB"
[ "$kilobytes" -le 65536 ]
