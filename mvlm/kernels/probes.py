"""What this machine has that implementations need. Each function returns the reason why it is missing, or None."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from mvlm.errors import first_line
from mvlm.kernels.dispatch import FOR_FP32

APEX_SOURCE = "NVIDIA's apex is not built here: cluster/gpu/build_apex.sh builds it"


@cache
def cuda() -> str | None:
    """A GPU that torch can use."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return None if torch.cuda.is_available() else "no CUDA device"


@cache
def apex(part: str) -> str | None:
    """One of apex's compiled parts, such as `fused_layer_norm_cuda`, and a GPU to run it on.

    PyPI's package of that name is another project, so that `import apex` tells nothing: `amp_C` is NVIDIA's alone.
    """
    for module in ("amp_C", part):
        if reason := _import(module):
            return APEX_SOURCE if isinstance(reason, ModuleNotFoundError) else f"{module}: {first_line(reason)}"
    return cuda()


@cache
def deepspeed() -> str | None:
    """DeepSpeed, looked for but not imported, which takes seconds. Without a run to start it may be missing."""
    return None if find_spec("deepspeed") else "deepspeed is not installed"


@cache
def triton() -> str | None:
    """The Triton language, and a GPU or its interpreter."""
    if reason := _import("triton"):
        return _missing("triton", reason)
    return None if triton_interprets() else cuda()


@cache
def package(module: str) -> str | None:
    """An optional package, by the module of it that is used."""
    reason = _import(module)
    return _missing(module.partition(".")[0], reason) if reason else None


def not_for_triton(*tensors: Tensor) -> str | None:
    """Why our Triton kernels cannot take these tensors of numbers, None if they can."""
    # "meta" stands for CUDA when work is counted.
    if not (triton_interprets() or all(tensor.is_cuda or tensor.is_meta for tensor in tensors)):
        return "it runs on CUDA"
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return FOR_FP32
    return None


def autocast(x: Tensor) -> str | None:
    """A reason if torch is to choose precisions by itself on that device."""
    # Not by is_autocast_available, which torch 2.11's compiler does not know; "meta" has none.
    kind = x.device.type
    return "autocast is on" if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) else None


def triton_interprets() -> bool:
    """Whether Triton's kernels run in its interpreter, on a CPU; decided when it was first imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _read_cpu_flags() -> frozenset[str]:
    """What Linux says the CPU can do, its vendor, and its family as a number; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    words = [line.partition(":")[2] for line in lines if line.startswith(("flags", "vendor_id", "cpu family"))]
    return frozenset(" ".join(words).split())


HAS_MKL, CPU_FLAGS = torch.backends.mkl.is_available(), _read_cpu_flags()
"""Asked at import, since torch's compiler can trace neither question."""


def mkl_lacks_avx512() -> bool:
    """Whether MKL leaves the CPU's AVX-512 unused: on CPUs that are not Intel's it runs its AVX2 code."""
    return {"AuthenticAMD", "avx512f"} <= CPU_FLAGS


def avx512_is_half() -> bool:
    """Whether the CPU processes AVX-512's 512 bits in two halves, as Zen 4, family 25, does: AVX2 is then as fast."""
    return {"AuthenticAMD", "avx512f", "25"} <= CPU_FLAGS


def cpu_gains_by_bf16() -> bool:
    """Whether the CPU multiplies bf16 faster than fp32: by AMX, or by AVX-512 on AMD.

    Intel's AVX-512 does no more operations a second in bf16 than in fp32, and oneDNN reaches three fifths of them.
    """
    return "amx_bf16" in CPU_FLAGS or {"AuthenticAMD", "avx512_bf16"} <= CPU_FLAGS


def imitates(x: Tensor) -> bool:
    """Whether a tensor is in bf16 on a CPU that multiplies faster in fp32."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and not cpu_gains_by_bf16()


def _import(module: str) -> Exception | None:
    """What importing a module raises: a compiled part that does not fit this torch raises more than ImportError."""
    try:
        import_module(module)
    except Exception as error:
        return error
    return None


def _missing(name: str, error: Exception) -> str:
    return f"{name} is not installed" if isinstance(error, ModuleNotFoundError) else f"{name}: {first_line(error)}"
