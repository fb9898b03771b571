"""Probes of DeepSpeed, and of those of its compiled operations that training may use."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvlm.check.folders import Folders
from mvlm.check.report import Finding, absent, broken, works
from mvlm.errors import first_line
from mvlm.runtime.imports import installed

WANTED_BY = {
    "fused_adam": "kernels.optimizer = 'deepspeed'",
    "cpu_adam": "offload of the optimizer to the CPU",
    "async_io": "offload to NVMe",
}
INSTEAD = {
    "fused_adam": "torch's AdamW is used",
    "cpu_adam": "torch's AdamW is used, which is slower",
    "async_io": "install g++ and libaio's headers (Debian: libaio-dev) to have it",
}


def find(folders: Folders) -> Iterator[Finding]:
    from mvlm.runtime import dist

    on_gpu = dist.uses_cuda()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    try:
        import deepspeed
        from deepspeed.git_version_info import installed_ops
        from deepspeed.ops import op_builder
    except Exception as error:  # importing it queries torch, CUDA and the environment, any of which may fail
        version = installed("deepspeed")
        remedy = f"python -m pip install --force-reinstall deepspeed{'==' if version else ''}{version}"
        yield broken("deepspeed", f"DeepSpeed cannot be imported ({first_line(error)})", remedy)
        return
    accelerator = deepspeed.accelerator.get_accelerator()
    says = f"DeepSpeed {deepspeed.__version__} computes on {'the CPU' if accelerator._name == 'cpu' else 'GPUs'}"
    yield works("deepspeed", says)
    builders = {"cpu_adam": op_builder.CPUAdamBuilder, "async_io": op_builder.AsyncIOBuilder}
    if on_gpu:
        builders["fused_adam"] = op_builder.FusedAdamBuilder
        toolkit = _toolkit()
        yield toolkit
    for name, builder in builders.items():
        yield _operation(name, builder, bool(installed_ops.get(name)))


def _operation(name: str, builder: Any, compiled_ahead: bool) -> Finding:
    use = f"{name}, for {WANTED_BY[name]},"
    if compiled_ahead:
        return works("deepspeed op", f"{use} was compiled ahead of time")
    if reason := _not_compilable(builder):
        return absent("deepspeed op", f"{use} cannot be compiled ({reason})", INSTEAD[name])
    return works("deepspeed op", f"{use} is compiled on first use, which takes a minute or two")


def _not_compilable(builder: Any) -> str | None:
    if shutil.which("ninja") is None:
        return "ninja is not installed"
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None:
        return "there is no C++ compiler"
    built = builder()
    try:
        if built.is_compatible(verbose=False):
            return None
    except Exception as error:  # DeepSpeed's probes may themselves fail
        return first_line(error)
    return first_line(built.error_log) if built.error_log else "something that it needs is missing"


def _toolkit() -> Finding:
    """CUDA's compiler, which must be the version that torch was built with."""
    import torch
    from deepspeed.ops.op_builder import builder

    try:
        builder.assert_no_cuda_mismatch()
        major, minor = builder.installed_cuda_version()
    except builder.MissingCUDAException as error:
        says = f"There is no CUDA toolkit ({first_line(error)}), so that DeepSpeed compiles nothing for the GPU"
        return absent("cuda toolkit", says, "torch's AdamW is used")
    except builder.CUDAMismatchException:
        major, minor = builder.installed_cuda_version()
        return broken(
            "cuda toolkit",
            f"The CUDA toolkit is {major}.{minor} and torch is built with {torch.version.cuda}",
            f"set CUDA_HOME to a toolkit {torch.version.cuda}",
        )
    return works("cuda toolkit", f"The CUDA toolkit is {major}.{minor}, which matches torch's")
