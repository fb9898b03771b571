"""Everything that is applied to a model from outside, in the order in which it is applied."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from mvlm.config.schema import Kernels, Objectives, Optim, Train
from mvlm.errors import UserError
from mvlm.kernels.layers import use_kernels
from mvlm.model.encoders import Encoders
from mvlm.model.initialization import InitialWeights
from mvlm.model.maskvlm import MaskVLM
from mvlm.model.randomness import is_random
from mvlm.runtime import replicas
from mvlm.training.blocks import evenly, find_blocks
from mvlm.training.capture import capture
from mvlm.training.compilation import compile_blocks, is_compiled
from mvlm.training.engine import Engine
from mvlm.training.kernels import settle_run
from mvlm.training.tensor_parallel import split_layers
from mvlm.training.zero.divide import can_divide, divide
from mvlm.training.zero.json_file import tensor_ranks

PARTS = {
    "image": ("cross_image", "image_decoder"),
    "text": ("cross_text", "mlm_head"),
    "itc": ("image_projection", "text_projection", "temperature", "contrastive_bias"),
    "itm": ("cross_image", "cross_text", "match_head"),
}
"""By objective, the parts that it reads besides the encoders."""


def parallelize(
    model: Encoders,
    ds_config: dict[str, Any],
    settle: Callable[[], dict[str, Any]] | None = None,
    *,
    train: Train,
    kernels: Kernels,
    optim: Optim,
    objectives: Objectives,
    seed: int,
    weights: InitialWeights | None = None,
    frozen_until: Mapping[str, int] = MappingProxyType({}),
) -> Engine:
    """Freeze, exchange kernels, split layers, recompute, settle, compile, capture, and hand the model to ZeRO; all
    ranks must call.

    Args:
        model: on the CPU, with its initial fp32 weights, equal on every rank, or with shapes alone.
        weights: the initial ones of a model with shapes alone.
        frozen_until: as `optim.parameter_groups` takes it.
        ds_config: as `zero.config.resolve` returns it.
        settle: called once the model's passes are final except for compilation; what it returns replaces `ds_config`.

    Raises:
        UserError: a part to freeze, a kernel, the compiler or what ZeRO offloads with is not available.
    """
    freeze(model, train.freeze)
    if weights and (train.micro_batch == "auto" or not can_divide(model, ds_config)):  # auto tries a whole model
        weights.materialize()
        weights = None
    settle_run(kernels)
    use_kernels(model)
    if (ranks := tensor_ranks(ds_config)) > 1:
        split_layers(model, ranks, replicas.place())
    recompute_blocks(model, train.recompute)
    if settle:
        ds_config = settle()
    if is_compiled(train, ds_config):  # after `settle`, which tries many sizes, each of which would be compiled
        compile_blocks(model, ds_config["zero_optimization"]["stage"])
        if train.compile == "captured":
            capture(model)
    if weights:
        divide(model, weights, ds_config)
    return Engine(model, optim, objectives, ds_config, train.ema, seed, train.checksums, train.audit, frozen_until)


def freeze(model: Encoders, parts: tuple[str, ...]) -> None:
    """Have parts keep their weights: `vision`, `text`, or any module of the model by its dotted name.

    A frozen encoder's mask token is frozen with it, so that nothing of it takes part in backward.

    Raises:
        UserError: there is no such part, or nothing is left to train that a loss depends on.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    for part in parts:
        if part not in modules:
            near = difflib.get_close_matches(part, modules, n=1)
            known = ", ".join(name for name, _ in model.named_children())
            hint = f"did you mean {near[0]!r}?" if near else f"known are {known}."
            raise UserError(f"train.freeze names {part!r}, which is not a part of this model; {hint}")
        modules[part].requires_grad_(False)
    read = _read(model.objectives) if isinstance(model, MaskVLM) else {name for name, _ in model.named_children()}
    if not any(part.requires_grad for name, part in model.named_parameters() if name.partition(".")[0] in read):
        raise UserError(
            "train.freeze leaves nothing to train that a weight in [objectives] asks for: take a part out of it."
        )


def _read(objectives: Objectives) -> set[str]:
    """The parts of a MaskVLM that take part in a loss."""
    weights = {name: getattr(objectives, name) for name in PARTS} | {"itc": objectives.itc or objectives.extra}
    return {"vision", "text", *(part for name, weight in weights.items() if weight for part in PARTS[name])}


def recompute_blocks(model: nn.Module, share: float) -> None:
    """Have a share of the blocks keep only their input, and recompute the rest in backward.

    Frozen blocks are not counted: nothing of them is kept for backward.
    """
    trained = [block for block in find_blocks(model) if any(p.requires_grad for p in block.parameters())]
    for block in evenly(trained, share):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=is_random(block))
