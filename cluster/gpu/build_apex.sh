#!/usr/bin/env bash
# Build NVIDIA's apex from source, with what mvlm calls:
#   amp_C (its FusedAdam alone)   fused_layer_norm_cuda   fused_dense_cuda
#
#   cluster/gpu/build_apex.sh            fetch the source, build and install it into this environment
#   cluster/gpu/build_apex.sh FOLDER     the same from a checkout that is there already, which is not changed
#
# It needs a CUDA build of torch and the nvcc of the same CUDA release, but no GPU. PYTHON, TORCH_CUDA_ARCH_LIST
# (8.0;9.0+PTX) and MAX_JOBS (all cores) may be set. WHEELS names a folder for a wheel, in which case nothing is installed;
# BUILD names one that keeps what is compiled, so that a build that was stopped resumes.
set -euo pipefail

commit=6424da3b4faa6c8f062da4a48c424fff3f02d42d
python=${PYTHON:-python}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-8.0;9.0+PTX}
export APEX_PARALLEL_BUILD=${MAX_JOBS:-$(nproc)} MAX_JOBS=1

fail() { echo "build_apex.sh: $1" >&2; exit 1; }

wanted=$("$python" -c 'import torch; print(torch.version.cuda or "")') || fail "$python has no torch: install it first."
[ -n "$wanted" ] || fail "this torch is built without CUDA: install a CUDA build of it."
command -v nvcc >/dev/null || fail "there is no nvcc: install the CUDA $wanted toolkit, or use a devel image."
found=$(nvcc --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
[ "$found" = "$wanted" ] || fail "nvcc is of CUDA $found and torch of CUDA $wanted: install the toolkit of $wanted."

if [ -n "${BUILD:-}" ]; then
    mkdir -p "$BUILD"
    work=$BUILD
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
if [ "$(git -C "$work/apex" rev-parse HEAD 2>/dev/null)" != "$commit" ]; then
    rm -rf "$work/apex" "$work/fetched"
    git clone --quiet --no-checkout "${1:-https://github.com/NVIDIA/apex}" "$work/fetched"
    git -C "$work/fetched" checkout --quiet "$commit" || fail "commit $commit is not in ${1:-the source}: update the checkout."
    # All of --cuda_ext would take ten times as long.
    "$python" - "$work/fetched" <<'END' || fail "apex's sources are not as they were at $commit."
import re
import sys
from pathlib import Path

folder = Path(sys.argv[1])
setup, frontend = folder / "setup.py", folder / "csrc/amp_C_frontend.cpp"
used = """
ext_modules = [m for m in ext_modules if m.name in ("amp_C", "fused_layer_norm_cuda", "fused_dense_cuda")]
for module in ext_modules:
    if module.name == "amp_C":
        module.sources = ["csrc/amp_C_frontend.cpp", "csrc/multi_tensor_adam.cu"]
"""
before, after = setup.read_text().split("\nsetup(\n")
setup.write_text(f"{before}\n{used}\nsetup(\n{after}")
before, after = frontend.read_text().split("PYBIND11_MODULE")
offered = re.findall(r'  m\.def\("multi_tensor_adam.*?>\(\)\);\n', after, re.DOTALL)
assert len(offered) == 3
frontend.write_text(f"{before}PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {{\n{''.join(offered)}}}\n")
END
    mv "$work/fetched" "$work/apex"
fi

export APEX_CUDA_EXT=1
if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip wheel -v --no-build-isolation --no-deps -w "$WHEELS" "$work/apex"
else
    "$python" -m pip install packaging ninja setuptools wheel
    "$python" -m pip install -v --no-build-isolation --no-deps "$work/apex"
    "$python" -c 'import torch, amp_C, fused_layer_norm_cuda, fused_dense_cuda; print("apex is built and loads")'
fi
