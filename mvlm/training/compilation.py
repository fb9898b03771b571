"""Compiles transformer blocks with torch: whether, for which shapes, and what happens if that fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn

from mvlm.config.schema import Train
from mvlm.errors import UserError, first_line
from mvlm.runtime import dist
from mvlm.runtime.log import rank_log
from mvlm.training.blocks import find_runs

PROOF = ""
"""The file in benchmarks/gpu/results that shows (proven.py) compiled steps to equal the eager ones and to be faster;
"" = there is none, and "auto" means uncompiled."""

COMPILED_VARIANTS = 64
"""Shapes, modes and kinds of blocks that a run is compiled for before it stays uncompiled; torch's 8 are few, since all
runs share their code."""


def is_compiled(train: Train, ds_config: dict[str, Any]) -> bool:
    """Whether a run's blocks are compiled.

    Raises:
        UserError: that is asked for, but cannot be combined with the DeepSpeed configuration.
    """
    stage = ds_config["zero_optimization"]["stage"]
    if train.compile == "auto":
        return (
            bool(PROOF) and "tensor_parallel" not in ds_config and dist.uses_cuda() and stage != 3 and _has_compiler()
        )
    if train.compile:
        check_stage(stage)
    if train.compile == "captured" and ds_config["gradient_accumulation_steps"] > 1:
        raise UserError(
            'train.compile = "captured" cannot be combined with accumulation: gradients that wait for more would be '
            "overwritten. Set it to true, or raise train.micro_batch."
        )
    return bool(train.compile)


def check_stage(stage: int) -> None:
    """Raise `UserError` if blocks cannot be compiled at this stage of ZeRO."""
    if stage == 3:
        raise UserError(
            "train.compile cannot be combined with ZeRO stage 3, which gathers parameters in the middle of every "
            "block: set it to false, or use a stage below 3."
        )


def compile_blocks(model: nn.Module, stage: int) -> None:
    """Compile blocks for training, a run of them as one, their recomputation included: one graph for both passes.

    Raises:
        UserError: blocks cannot be compiled at this stage of ZeRO, or on this machine.
    """
    check_stage(stage)
    if not _has_compiler():
        raise UserError("train.compile needs a C++ compiler on every node: install g++, or set it to false.")
    torch._dynamo.config.recompile_limit = COMPILED_VARIANTS
    torch._functorch.config.force_non_lazy_backward_lowering = True  # so that it fails where it is caught
    compiler = _Compiler()
    for run in find_runs(model):
        compiler.compile(run)


class _Compiler:
    """Compiles runs of blocks until it fails on one; then all of them run uncompiled."""

    def __init__(self) -> None:
        self._failed = False

    def compile(self, run: list[Any]) -> None:
        """Have a run's first block compute all of it, compiled, and the others give its result as they get it.

        Each shape is compiled separately, since dynamic sizes make slower kernels. Evaluations, which have shapes of
        their own, run uncompiled, and so one by one.
        """
        first, *others = run
        plain, compiled = first.forward, torch.compile(_chain([block.forward for block in run]), dynamic=False)

        @wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._is_compiled(first):
                try:
                    return compiled(*args, **kwargs)
                except torch._dynamo.exc.TorchDynamoException as error:
                    self._fail(error)
            return plain(*args, **kwargs)

        first.forward = forward
        for block in others:
            block.forward = self._pass_on(first, block.forward)

    def _pass_on(self, first: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
        """A forward pass that a run's first block has computed where it is compiled."""

        @wraps(plain)
        def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
            return x if self._is_compiled(first) else plain(x, *args, **kwargs)

        return forward

    def _is_compiled(self, first: Any) -> bool:
        return first.training and not self._failed

    def _fail(self, error: Exception) -> None:
        self._failed = True
        reason = first_line(error)
        rank_log.warning(f"train.compile: the compiler fails here ({reason}), so blocks run uncompiled.")


def _chain(forwards: list[Callable[..., Any]]) -> Callable[..., Any]:
    """Forward passes one after another: each takes the result of the one before it, and the same other arguments."""

    if len(forwards) == 1:
        return forwards[0]

    def run(x: Any, *args: Any, **kwargs: Any) -> Any:
        for forward in forwards:
            x = forward(x, *args, **kwargs)
        return x

    return run


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
