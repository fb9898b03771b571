#!/usr/bin/env bash
# Build NVIDIA's apex from source, with the three extensions that mvlm calls:
#   amp_C (FusedAdam)   fused_layer_norm_cuda   fused_dense_cuda
#
#   cluster/gpu/build_apex.sh            fetch the source, build and install it into this environment
#   cluster/gpu/build_apex.sh FOLDER     the same from a checkout that is there already, which is not changed
#
# It needs a CUDA build of torch and the nvcc of the same CUDA release; a GPU need not be there.
# PYTHON, TORCH_CUDA_ARCH_LIST (8.0;9.0) and MAX_JOBS (all cores) may be set.
set -euo pipefail

commit=6424da3b4faa6c8f062da4a48c424fff3f02d42d
python=${PYTHON:-python}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-8.0;9.0}
export APEX_PARALLEL_BUILD=${MAX_JOBS:-$(nproc)} MAX_JOBS=1

fail() { echo "build_apex.sh: $1" >&2; exit 1; }

wanted=$("$python" -c 'import torch; print(torch.version.cuda or "")') || fail "$python has no torch: install it first."
[ -n "$wanted" ] || fail "this torch is built without CUDA: install a CUDA build of it."
command -v nvcc >/dev/null || fail "there is no nvcc: install the CUDA $wanted toolkit, or use a devel image."
found=$(nvcc --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
[ "$found" = "$wanted" ] || fail "nvcc is of CUDA $found and torch of CUDA $wanted: install the toolkit of $wanted."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git clone --quiet --no-checkout "${1:-https://github.com/NVIDIA/apex}" "$work/apex"
git -C "$work/apex" checkout --quiet "$commit" || fail "commit $commit is not in ${1:-the source}: update the checkout."

# All of --cuda_ext would take three times as long.
used='{"amp_C", "fused_layer_norm_cuda", "fused_dense_cuda"}'
sed -i "s/^setup(\$/ext_modules = [module for module in ext_modules if module.name in $used]\n&/" "$work/apex/setup.py"
grep -q '^ext_modules = \[module for' "$work/apex/setup.py" || fail "apex's setup.py is not as it was at $commit."

"$python" -m pip install packaging ninja setuptools wheel
APEX_CUDA_EXT=1 "$python" -m pip install -v --no-build-isolation --no-deps "$work/apex"
"$python" -c 'import torch, amp_C, fused_layer_norm_cuda, fused_dense_cuda; print("apex is built and loads")'
