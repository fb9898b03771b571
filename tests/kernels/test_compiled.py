"""Every Triton kernel compiles for an A100 and an H100, on any machine: it fits, and no register spills."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

from triton import knobs  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mvlm.kernels import contrastive, contrastive_triton, negatives_triton, patch_l1, patch_l1_triton  # noqa: E402

TYPES = {
    "pixels": "*bf16",
    "image": "*u8",
    **dict.fromkeys(("patches", "ids", "own_ids", "positions", "seeds"), "*i64"),
}
FP32 = ("own", "others", "temperature", "lse_own", "lse_others", "means", "stds", "upstream", "results")
WIDEST_GRADIENT = {**contrastive_triton.TILE, "WIDTH": contrastive.WIDEST}
LARGEST_PATCH = {"SIZE": 36, "NORMALIZED": True, "BLOCK": patch_l1.LARGEST}
KERNELS: dict[str, tuple[Any, dict[str, Any], dict[str, str]]] = {
    "patch": (patch_l1_triton.compare_patch, {"upstream": None, **LARGEST_PATCH}, {}),
    "patch, gradient": (patch_l1_triton.compare_patch, LARGEST_PATCH, {"results": "*bf16"}),
    "log-sum-exp": (contrastive_triton.sum_row_exps, contrastive_triton.TILE, {}),
    "contrastive gradient": (contrastive_triton.sum_weighted, WIDEST_GRADIENT, {}),
    "negatives": (negatives_triton.draw, {"UNIFORM": False, **negatives_triton.TILE}, {"results": "*i64"}),
    "negatives, uniform": (negatives_triton.draw, {"UNIFORM": True, **negatives_triton.TILE}, {"results": "*i64"}),
}
WITH_IDS = ("log-sum-exp", "contrastive gradient", "negatives")
KERNELS |= {
    f"{name}, no ids": (
        kernel,
        {**constants, "ids": None, **({"own_ids": None} if "own_ids" in kernel.arg_names else {})},
        types,
    )
    for name, (kernel, constants, types) in KERNELS.items()
    if name in WITH_IDS
}
WARPS = dict.fromkeys(("patch", "patch, gradient"), patch_l1_triton.warps(patch_l1.LARGEST))
WARPS |= {name: contrastive_triton.GRADIENT_WARPS for name in KERNELS if name.startswith("contrastive gradient")}


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_without_spills(name: str, capability: int, aligned: bool, tmp_path: Path) -> None:
    """Triton compiles a separate kernel for addresses and integers that are multiples of 16."""
    kernel, constants, types = KERNELS[name]
    kinds = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(FP32, "*fp32") | TYPES | types
    signature = {argument: "constexpr" if argument in constants else kinds[argument] for argument in kernel.arg_names}
    multiples = [i for i, kind in enumerate(signature.values()) if kind != "constexpr"] if aligned else []
    alignment = {(i,): [["tt.divisibility", 16]] for i in multiples}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=alignment)
    options = {"num_warps": WARPS.get(name, 4)}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    report = subprocess.run([knobs.nvidia.cuobjdump.path, "-res-usage", binary], capture_output=True, text=True)
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", report.stdout))
    assert usage.keys() == {"REG", "STACK", "LOCAL"}, report
    assert usage["STACK"] == usage["LOCAL"] == "0", usage  # spilled registers would be there
    assert compiled.metadata.shared <= 100 * 1024  # so that two programs fit a multiprocessor of an H100


def test_operators_can_be_traced() -> None:
    """On fake tensors, as torch.compile does; the interpreter cannot."""
    with FakeTensorMode():
        pixels = torch.empty(5, 12, dtype=torch.bfloat16, requires_grad=True)
        image, ids = torch.empty(2, 3, 6, 4, dtype=torch.uint8), torch.empty(64, 2, dtype=torch.int64)
        patch = pixels, image, ids[:5, 0], 2, torch.empty(3), torch.empty(3), True
        assert patch_l1_triton.patch_l1(*patch).requires_grad
        assert patch_l1_triton.patch_l1_backward(torch.empty(()), *patch).dtype == torch.bfloat16
        own, others, temperature = torch.empty(8, 32), torch.empty(64, 32), torch.empty(1)
        for excluded in (None, ids):
            both = (None, None) if excluded is None else (ids[:8], ids)
            lse = contrastive_triton.log_sum_exps(own, others, temperature, 3, *both)
            assert lse.shape == (8,)
            columns = others[:, 0]
            gradient = contrastive_triton.contrastive_gradient(own, others, temperature, 3, lse, columns, *both)
            assert gradient.shape == own.shape
            drawn = negatives_triton.negatives(others, others, temperature, ids[:, 0], 0, 4, 11, excluded, False)
            assert (drawn.shape, drawn.dtype) == ((64,), torch.int64)
