"""Every Triton kernel compiled as for an A100 and an H100, which needs neither: it fits, and no register spills."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton import knobs  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mvlm.kernels import contrastive, contrastive_triton, negatives_triton, patch_l1, patch_l1_triton  # noqa: E402

TYPES = {
    **dict.fromkeys(("pixels",), "*bf16"),
    **dict.fromkeys(("image",), "*u8"),
    **dict.fromkeys(("patches", "ids", "positions", "seeds"), "*i64"),
}
FP32 = ("own", "others", "temperature", "lse_own", "lse_others", "means", "stds", "upstream", "results")
WIDEST_GRADIENT = {**contrastive_triton.GRADIENT_TILE, "WIDTH": contrastive.WIDEST}
LARGEST_PATCH = {"SIZE": 36, "NORMALIZED": True, "BLOCK": patch_l1.LARGEST}
KERNELS: dict[str, tuple[Any, dict[str, Any], dict[str, str]]] = {
    "patch": (patch_l1_triton.compare_patch, {"upstream": None, **LARGEST_PATCH}, {}),
    "patch, gradient": (patch_l1_triton.compare_patch, LARGEST_PATCH, {"results": "*bf16"}),
    "log-sum-exp": (contrastive_triton.sum_row_exps, contrastive_triton.SUM_TILE, {}),
    "contrastive gradient": (contrastive_triton.sum_weighted, WIDEST_GRADIENT, {}),
    "negatives": (negatives_triton.draw, {"UNIFORM": False, **negatives_triton.TILE}, {"results": "*i64"}),
}
WARPS = {"contrastive gradient": contrastive_triton.GRADIENT_WARPS}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_it_compiles_without_spills(name: str, capability: int, tmp_path: Path) -> None:
    kernel, constants, types = KERNELS[name]
    if not hasattr(kernel, "arg_names"):
        pytest.skip("kernels are interpreted in this process")
    kinds = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(FP32, "*fp32") | TYPES | types
    signature = {argument: "constexpr" if argument in constants else kinds[argument] for argument in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    options = {"num_warps": WARPS.get(name, 4)}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    told = subprocess.run([knobs.nvidia.cuobjdump.path, "-res-usage", binary], capture_output=True, text=True)
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", told.stdout))
    assert usage.keys() == {"REG", "STACK", "LOCAL"}, told
    assert usage["STACK"] == usage["LOCAL"] == "0", usage  # where registers are spilled to
    assert compiled.metadata.shared <= 100 * 1024  # two programs to a multiprocessor of an H100
