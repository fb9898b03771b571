"""Probes of Triton: our own kernels, compiled for the GPU or run by its interpreter, compared with torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from mvlm.check.folders import Folders
from mvlm.check.report import Finding, absent, broken, works
from mvlm.errors import first_line
from mvlm.runtime.imports import installed

KERNELS = ("patch_l1", "log_sum_exps")
TOLERANCE = 1e-4


def find(folders: Folders) -> Iterator[Finding]:
    from mvlm.runtime import dist

    on_gpu = dist.uses_cuda()
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # before it is imported
    from mvlm.kernels import probes

    if reason := probes.triton():
        if reason.endswith("is not installed"):
            instead = "torch's own operations are used"
            yield absent("triton", f"Triton is not installed, and {instead}", "pip install triton to have it")
        else:
            yield broken("triton", f"Triton cannot be used ({reason})", "install the version that torch asks for")
        return
    try:
        wrong = [name for name in KERNELS if not _agrees(name, "cuda" if on_gpu else "cpu")]
    except Exception as error:  # its compiler fails in many ways
        says = f"Triton {installed('triton')} runs no kernel ({first_line(error)})"
        yield broken("triton", says, "check that there is a C compiler and that ~/.triton can be written to")
        return
    if wrong:
        says = f"Triton {installed('triton')} computes {', '.join(wrong)} differently from torch"
        yield broken("triton", says, f"set kernels.{wrong[0]} = 'torch'")
        return
    how = "compiled for the GPU" if on_gpu else "in its interpreter, which is for tests: without a GPU none is needed"
    yield works("triton", f"Triton {installed('triton')} runs our kernels, {how}")


def _agrees(name: str, device: str) -> bool:
    """Whether the Triton implementation of an operation agrees with its reference, which is the last one."""
    import torch

    from mvlm.kernels.ops import EXAMPLES, OPS

    draw = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Any:
        return torch.rand(shape, generator=draw).to(device)

    arguments, implementations = EXAMPLES[name](make), OPS[name].implementations
    by_triton = next(one for one in implementations if one.name == "triton")
    found, right = (_flat(one.run(*arguments)) for one in (by_triton, implementations[-1]))
    return torch.allclose(found, right, rtol=TOLERANCE, atol=TOLERANCE)


def _flat(result: Any) -> Any:
    import torch

    return torch.cat([part.flatten() for part in (result if isinstance(result, tuple) else (result,))])
