"""AdamW with each library's kernels, checked and timed: a part of parity.py.

Parameters come as DeepSpeed gives them to an optimizer, each group in one fp32 tensor, and tensor by tensor. The
changes after a few updates are compared with those of torch's own AdamW in float64, and one update is timed.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.record import Line, Record, device, error_of, milliseconds, timed
from benchmarks.step.sizes import Size, build
from mvlm.config.schema import Optim
from mvlm.training.optim import parameter_groups
from mvlm.training.zero.adamw import optimizer

Groups = list[dict[str, Any]]
SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.05}
UPDATES, TIMES, SECONDS = 3, 20, 1.0
FLOOR = 1e-6
"""Errors up to this are accepted, whatever torch's own."""


def measure(record: Record, size: Size) -> None:
    """Add a line for each form of the parameters and each implementation."""
    with torch.device("meta"):
        groups = parameter_groups(build(size), Optim())
    each = [[tuple(parameter.shape) for parameter in group["params"]] for group in groups]
    flat = [[(sum(map(math.prod, shapes)),)] for shapes in each]
    for form, stage, shapes in (("a tensor a group", 1, flat), ("tensor by tensor", 0, each)):
        exact = changes(partial(torch.optim.AdamW, **SETTINGS), shapes, torch.float64)
        settings = {"settings": SETTINGS, "device": device(), "stage": stage}
        plain_error = worst(changes(partial(optimizer.implementations[-1].run, **settings), shapes), exact)
        numbers = sum(math.prod(shape) for group in shapes for shape in group)
        for one in optimizer.implementations:
            name: Line = {"op": "optimizer", "form": form, "implementation": one.name, "precision": "fp32"}
            name |= {"shapes": [[sum(map(len, shapes)), numbers]]}
            name |= {"taken": one.name == optimizer.first([], **settings).name}
            reason = optimizer.why_not(one) or one.accepts([], **settings)
            if reason := reason or (not_compiled() if one.name == "deepspeed" else None):
                record.add(**name, cannot=reason)
            else:
                make = partial(one.run, **settings)
                record.attempt(name, partial(judge, make, shapes, exact, max(2 * plain_error, FLOOR)))


def judge(make: Any, shapes: list[list[tuple[int, ...]]], exact: list[Tensor], bound: float) -> Line:
    error = worst(changes(make, shapes), exact)
    groups = numbers_of(shapes, torch.float32)
    adamw = make(groups)
    give_gradients(groups, 0)
    times = timed(adamw.step, TIMES, SECONDS)
    return {"error": error, "bound": bound, "holds": error <= bound, "milliseconds": milliseconds(times)}


def changes(make: Any, shapes: list[list[tuple[int, ...]]], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The change after some updates, for each group."""
    groups = numbers_of(shapes, dtype)
    before = [joined(group) for group in groups]
    adamw = make(groups)
    for turn in range(UPDATES):
        give_gradients(groups, turn)
        adamw.step()
    return [joined(group) - old for group, old in zip(groups, before, strict=True)]


def numbers_of(shapes: list[list[tuple[int, ...]]], dtype: torch.dtype) -> Groups:
    """Random parameters, the same in each precision up to rounding."""
    generator = torch.Generator(device()).manual_seed(0)
    made = []
    for group in shapes:
        tensors = [torch.randn(shape, device=device(), generator=generator) for shape in group]
        made.append({"params": [(0.02 * tensor).to(dtype).requires_grad_() for tensor in tensors]})
    return made


def give_gradients(groups: Groups, turn: int) -> None:
    generator = torch.Generator(device()).manual_seed(1 + turn)
    for group in groups:
        for tensor in group["params"]:
            tensor.grad = torch.randn(tensor.shape, device=device(), generator=generator).to(tensor.dtype)


def joined(group: dict[str, Any]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in group["params"]])


def worst(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(error_of(a, b) for a, b in zip(found, exact, strict=True))


def not_compiled() -> str | None:
    """Why DeepSpeed's kernel cannot be used, if it is not compiled: compiling it at the first call takes too long."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import accelerator_name, installed_ops

    if installed_ops.get("fused_adam") and accelerator_name == get_accelerator().device_name():
        return None
    return "DeepSpeed's FusedAdam is not compiled for this device: benchmarks/gpu/wheels.sh compiles it for GPUs"
