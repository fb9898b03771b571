"""Transformer blocks compiled by torch: whether they are, in which shapes, and what happens where that fails."""

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
from mvlm.training.blocks import find_blocks

PROOF = ""
"""The file of benchmarks/gpu/results by which (proven.py) compiled steps are the eager ones, and faster; "" = none is,
and what is left to "auto" runs uncompiled."""

COMPILED_VARIANTS = 64
"""Shapes and modes that a block is compiled for before it runs uncompiled; torch's 8 are few for blocks of three kinds
that share their code."""


def is_compiled(train: Train, ds_config: dict[str, Any]) -> bool:
    """Whether a run's blocks are compiled.

    Raises:
        UserError: that is asked for, and does not go with the DeepSpeed configuration.
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
    """Raise `UserError` where blocks cannot be compiled at this stage of ZeRO."""
    if stage == 3:
        raise UserError(
            "train.compile cannot be combined with ZeRO stage 3, which gathers parameters in the middle of every "
            "block: set it to false, or use a stage below 3."
        )


def compile_blocks(model: nn.Module, stage: int) -> None:
    """Compile every block for training; recomputation is within, and the compiler takes both passes for one graph.

    Raises:
        UserError: blocks cannot be compiled at this stage of ZeRO, or on this machine.
    """
    check_stage(stage)
    if not _has_compiler():
        raise UserError("train.compile needs a C++ compiler on every node: install g++, or set it to false.")
    torch._dynamo.config.recompile_limit = COMPILED_VARIANTS
    torch._functorch.config.force_non_lazy_backward_lowering = True  # it fails where it can be caught
    compiler = _Compiler()
    for block in find_blocks(model):
        block.forward = compiler.compile(block)


class _Compiler:
    """Compiles blocks until it fails on one; then all of them run uncompiled."""

    def __init__(self) -> None:
        self._failed = False

    def compile(self, block: Any) -> Callable[..., Any]:
        """Its forward pass, for each shape by itself: sizes that may change make slower kernels.

        An evaluation, whose shapes are its own, runs uncompiled.
        """
        plain = block.forward
        compiled = torch.compile(plain, dynamic=False)

        @wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._failed or not block.training:
                return plain(*args, **kwargs)
            try:
                return compiled(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                self._fail(error)
            return plain(*args, **kwargs)

        return forward

    def _fail(self, error: Exception) -> None:
        self._failed = True
        reason = first_line(error)
        rank_log.warning(f"train.compile: the compiler fails here ({reason}), so that blocks run uncompiled.")


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
