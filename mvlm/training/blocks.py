"""Before the engine wraps a model, its transformer blocks: compiled, and a share computed again in backward."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mvlm.config.schema import Config
from mvlm.errors import UserError
from mvlm.model.randomness import is_random

VARIANTS = 64
"""Shapes and modes that a block is compiled for before it runs uncompiled; torch's 8 are few for blocks of three kinds
that share their code."""


def prepare_blocks(model: nn.Module, config: Config, stage: int) -> None:
    """Have a share of the blocks computed again in backward (`train.recompute`), and compile all (`train.compile`).

    Frozen blocks are not counted: nothing of them is kept for backward.

    Args:
        stage: of ZeRO.

    Raises:
        UserError: blocks cannot be compiled at this stage or on this machine.
    """
    blocks = list(find_blocks(model))
    trained = [block for block in blocks if any(parameter.requires_grad for parameter in block.parameters())]
    for block in evenly(trained, config.train.recompute):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=is_random(block))
    if config.train.compile:
        check_stage(config, stage)
        _check_compiler()
        torch._dynamo.config.recompile_limit = VARIANTS
        for block in blocks:  # recomputation within: the compiler sees both passes, and takes one graph for them
            block.forward = torch.compile(block.forward)


def find_blocks(model: nn.Module) -> Iterator[Any]:
    """The transformer blocks: modules of one class in a list, each of several linear layers; none inside another."""
    for child in model.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and _are_blocks(child):
            yield from child
        else:
            yield from find_blocks(child)


def evenly(blocks: list[Any], share: float) -> list[Any]:
    """So large a share of the blocks, spread over all of them."""
    return [block for i, block in enumerate(blocks) if math.floor((i + 1) * share) > math.floor(i * share)]


def _are_blocks(modules: nn.ModuleList | nn.Sequential) -> bool:
    linears = [sum(isinstance(part, nn.Linear) for part in module.modules()) for module in modules]
    return len({type(module) for module in modules}) == 1 and min(linears) > 1


def check_stage(config: Config, stage: int) -> None:
    """Raise `UserError` where blocks are to be compiled that cannot be at this stage of ZeRO."""
    if config.train.compile and stage == 3:
        raise UserError(
            "train.compile does not go with ZeRO stage 3, which gathers parameters in the middle of every block: "
            "set it to false, or use a stage below 3."
        )


def _check_compiler() -> None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        raise UserError("train.compile needs a C++ compiler on every node: install g++, or set it to false.")
