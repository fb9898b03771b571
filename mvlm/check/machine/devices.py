"""Probes of torch, of the devices that it computes on, and of whether they multiply correctly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mvlm.check.folders import Folders
from mvlm.check.report import Finding, absent, broken, works
from mvlm.errors import first_line
from mvlm.runtime.wording import counted

if TYPE_CHECKING:
    import torch

SIZE = 256
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
"""Largest error of a product, as a share of its largest value."""


def gpus_of_machine() -> int:
    """Number of NVIDIA GPUs that the kernel knows, usable or not."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def usable_gpus() -> int:
    """Number of GPUs that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find(folders: Folders) -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a missing or mismatched library raises more than ImportError
        yield broken("torch", f"torch cannot be imported ({first_line(error)})", "reinstall it")
        return
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
    yield works("torch", f"torch {torch.__version__} is built for {built_for}")
    yield _cuda()
    yield from _compute(torch.device("cpu"), "The CPU")
    for number in range(usable_gpus()):
        device = torch.device("cuda", number)
        yield from _compute(device, f"GPU {number} ({torch.cuda.get_device_name(device)})")


def _cuda() -> Finding:
    import torch

    there, usable = gpus_of_machine(), usable_gpus()
    facts = {"gpus": usable, "gpus_of_machine": there}
    if usable:
        left_alone = (
            ", but DS_ACCELERATOR=cpu makes training ignore them" if os.environ.get("DS_ACCELERATOR") == "cpu" else ""
        )
        return works("gpu", f"{counted(usable, 'GPU')} can be used{left_alone}", facts=facts)
    if not there:
        return absent("gpu", "There is no NVIDIA GPU, and training computes on the CPU", facts=facts)
    if torch.version.cuda is None:
        says = f"This machine has {counted(there, 'NVIDIA GPU')} and torch is built for CPUs only"
        return broken("gpu", says, "install a torch that is built for CUDA, see pytorch.org", facts)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):
        says = f"CUDA_VISIBLE_DEVICES={hidden!r} hides the GPUs of this machine"
        return absent("gpu", says, "unset it to train on them", facts)
    try:
        torch.cuda.init()
        reason = "torch finds none"
    except Exception as error:
        reason = first_line(error)
    return broken(
        "gpu",
        f"This machine has {counted(there, 'NVIDIA GPU')} that torch cannot use ({reason})",
        f"see nvidia-smi, and install a driver for CUDA {torch.version.cuda} or a torch built for an older one",
        facts,
    )


def _compute(device: torch.device, name: str) -> Iterator[Finding]:
    """A product in each precision that training computes in, compared with one in float64."""
    import torch

    from mvlm.kernels.probes import cpu_gains_by_bf16

    on_gpu = device.type == "cuda"
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_gains_by_bf16()
    failures = []
    for dtype in (torch.float32, torch.bfloat16):
        if failure := _wrong_product(device, dtype):
            failures.append(f"{str(dtype).removeprefix('torch.')}: {failure}")
    if failures:
        remedy = "check its memory for errors with nvidia-smi -q, and do not use it" if on_gpu else "reinstall torch"
        yield broken("product", f"{name} multiplies incorrectly ({'; '.join(failures)})", remedy)
    else:
        yield works("product", f"{name} multiplies correctly in fp32 and bf16")
    if has_bf16:
        yield works("bf16", f"{name} is faster in bf16 than in fp32")
    else:
        yield absent("bf16", f"{name} is no faster in bf16 than in fp32")


def _wrong_product(device: torch.device, dtype: torch.dtype) -> str | None:
    import torch

    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=draw).to(dtype) for _ in range(2))
    right = a.double() @ b.double()
    try:
        error = ((a.to(device) @ b.to(device)).cpu().double() - right).abs().max() / right.abs().max()
    except Exception as failure:  # drivers fail in many ways
        return first_line(failure)
    allowed = TOLERANCE[str(dtype).removeprefix("torch.")]
    return None if error < allowed else f"off by {float(error):.2g} of the largest value"  # NaN fails too
