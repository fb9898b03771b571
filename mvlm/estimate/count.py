"""What a step of a model costs, counted by torch on fake tensors: no GPU, no weights and no data are needed.

The model runs forward and backward as it is, once for the operations of its matrix products and twice, with two numbers
of pairs, for the memory of its tensors, which is linear in the pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvlm.batch import Batch, Encoded, GlobalBatch, LabelledBatch, Negative
from mvlm.config.schema import Data, Optim
from mvlm.estimate.parts import FlopsByPart
from mvlm.estimate.sums import SumCounter, Sums
from mvlm.estimate.synthetic import synthetic_batch
from mvlm.model.finetune import TaskModel
from mvlm.model.flops import GPU, flop_counter, linear_by_torch, on_meta, without_values
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime.live_memory import LiveMemory
from mvlm.training.blocks import find_blocks
from mvlm.training.gradient_norms import PARTS, part_of
from mvlm.training.match_groups import Passes
from mvlm.training.optim import muon_shapes, parameter_groups
from mvlm.training.parallelize import recompute_blocks
from mvlm.training.tensor_parallel import split_layers

UNIT = 16
"""Pairs that are counted at once."""


@dataclass(frozen=True)
class Flops:
    """Operations per pair by part: of the forward pass, and of forward and backward pass without recomputation."""

    forward: dict[str, float]
    step: dict[str, float]


@dataclass(frozen=True)
class Moments:
    """The memory of a forward and a backward pass after each of their operations, arrays of one length.

    Attributes:
        fixed, per_pair: bytes of all tensors except weights and their gradients are `fixed + per_pair * pairs`.
        gradients: share of the trained weights that have their gradient.
        backward: the first moment of the backward pass.
    """

    fixed: np.ndarray
    per_pair: np.ndarray
    gradients: np.ndarray
    backward: int


class FakeModel:
    """A model on a device that need not be there, and what its steps cost with captions of the maximum length.

    Attributes:
        parameters: by part; what two parts share counts for the first.
        trained: parameters that are not frozen.
        blocks: transformer blocks; `trained_blocks`: those that have a trained parameter.
        groups: parameters of each group that DeepSpeed keeps flat.
        matrices: shapes of those that Muon updates, by group.
    """

    def __init__(self, model: MaskVLM, data: Data, device: str = GPU, optim: Optim | None = None) -> None:
        self.data, self.objectives, self.device = data, model.objectives, device
        self.contrastive_width = model.image_projection.linear.out_features
        self.model = on_meta(model)
        counts = Counter(dict.fromkeys(PARTS, 0))
        for name, parameter in model.named_parameters():
            counts[part_of(name)] += parameter.numel()
        self.parameters = dict(counts)
        self.trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        blocks = list(find_blocks(model))
        self.blocks = len(blocks)
        self.trained_blocks = sum(any(p.requires_grad for p in block.parameters()) for block in blocks)
        self._optim = optim = optim or Optim()
        self.groups = [sum(p.numel() for p in group["params"]) for group in parameter_groups(model, optim)]
        self.matrices = muon_shapes(model, optim)
        self._flops: dict[bool, Flops] = {}
        self._ahead: float | None = None
        self._moments: dict[tuple[int, float, bool], Moments] = {}
        self._sums: dict[tuple[float, bool], Sums] = {}
        self._divided: dict[int, FakeModel] = {}

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    def divided(self, ranks: int) -> FakeModel:
        """What each rank has and computes if `ranks` split the layers of its blocks; raises as `split_layers`."""
        if ranks not in self._divided:
            model = on_meta(self.model)
            split_layers(model, ranks, 0)
            self._divided[ranks] = FakeModel(model, self.data, self.device, self._optim)
        return self._divided[ranks]

    def sums(self, recompute: float, foreign: bool = False) -> Sums:
        """What the ranks of a divided model sum up; args as for `moments_of`."""
        key = recompute, foreign
        if key not in self._sums:
            batch = self._longest(UNIT)
            with without_values(self.model, self.device) as (model, without_value):
                recompute_blocks(model, recompute)
                with SumCounter(model) as counter:
                    self._loss(model, without_value(batch), foreign).backward()
            self._sums[key] = Sums(counter.elements / UNIT, counter.times)
        return self._sums[key]

    @property
    def token_numbers(self) -> tuple[int, int]:
        """How many numbers an image's tokens have, and the longest text's."""
        model, (rows, columns) = self.model, self.model.grid
        return (rows * columns + 1) * model.vision.width, self.data.text_length * model.text.width

    def flops(self, foreign: bool = False) -> Flops:
        """The operations of a pair; a part that no objective needs is absent.

        Args:
            foreign: ITM's negatives are not rows of the micro-batch.
        """
        if foreign not in self._flops:
            batch = self._longest(UNIT)
            with without_values(self.model, self.device) as (model, without_value), flop_counter() as counter:
                parts = FlopsByPart(counter, model)
                loss = self._loss(model, without_value(batch), foreign)
                forward = parts.until_now()
                loss.backward()
                step = parts.until_now()
            a_pair = ({p: found[p] / UNIT for p in PARTS if step[p]} for found in (forward, step))
            self._flops[foreign] = Flops(*a_pair)
        return self._flops[foreign]

    def ahead(self) -> float:
        """Operations of a pair before its own passes, if ITM's groups span successive micro-batches."""
        if self._ahead is None:
            batch = self._longest(UNIT)
            with without_values(self.model, self.device) as (model, without_value), flop_counter() as counter:
                passes, batch = Passes(model, lambda start: None, 1.0), without_value(batch)
                pool = model.alone(batch)
                _, *tokens = passes.encode(0, batch)
                leaves = [x.detach().requires_grad_() for x in tokens]
                passes.gradients(0, batch, _with_foreign(pool, batch, leaves), leaves)
                self._ahead = counter.get_total_flops() / UNIT
        return self._ahead

    def moments(self, element: int, recompute: float, foreign: bool = False) -> Moments:
        """The moments for any number of pairs, from two runs; on a GPU only, where operations run alike for all shapes.

        Args: as for `moments_of`.
        """
        key = element, recompute, foreign
        if key not in self._moments:
            one, two = (self.moments_of(n * UNIT, *key) for n in (1, 2))
            growth = (two.fixed - one.fixed) / UNIT
            self._moments[key] = replace(one, fixed=2 * one.fixed - two.fixed, per_pair=growth)
        return self._moments[key]

    def moments_of(self, pairs: int, element: int, recompute: float, foreign: bool = False) -> Moments:
        """The moments for exactly so many pairs, with all of their memory "fixed".

        Args:
            element: bytes of a weight and an activation, 2 or 4.
            recompute: the share of the blocks that backward computes again.
            foreign: ITM's negatives are not rows of the micro-batch.
        """
        batch, dtype = self._longest(pairs), torch.bfloat16 if element == 2 else torch.float32
        with without_values(self.model, self.device, dtype) as (model, without_value):
            recompute_blocks(model, recompute)
            with _Trace(model) as trace:
                given = without_value(batch)  # held to the end, as by a step: garbage would count until it is collected
                loss = self._loss(model, given, foreign)
                backward = len(trace.moments)
                loss.backward()
                del loss
        live, gradients = np.array(trace.moments, dtype=np.float64).T
        return Moments(live, np.zeros_like(live), gradients / self.trained, backward)

    def _longest(self, pairs: int) -> Batch:
        return synthetic_batch(self.model, self.data, [self.data.text_length] * pairs)

    def _loss(self, model: MaskVLM, batch: Batch, foreign: bool) -> Tensor:
        losses = model(batch, _with_foreign(model.alone(batch), batch) if foreign else None)
        return torch.stack([self.objectives.weight(name) * loss for name, loss in losses.items()]).sum()


def task_flops(model: TaskModel, text_length: int) -> float:
    """Operations of a sample of a fine-tuning task, forward and backward, with a sentence of so many tokens."""
    side, task = model.grid[0] * model.vision.patch, model.task
    image_VBCHW = torch.empty(task.images, UNIT, 3, side, side, dtype=torch.uint8, device="meta")
    text_TBL = torch.zeros(1, UNIT, text_length, dtype=torch.int64)
    number_B = torch.zeros(UNIT, dtype=torch.int64)
    *_, bias_A = model.head.parameters()
    label_B = torch.zeros(UNIT, len(bias_A)) if task.name == "vqa" else number_B
    batch = LabelledBatch(
        image_VBCHW, text_TBL, torch.ones_like(text_TBL, dtype=torch.bool), label_B, number_B, number_B
    )
    with linear_by_torch(), without_values(model, "cpu") as (model, without_value), flop_counter() as counter:
        model(without_value(batch))["task"].backward()  # on "cpu", where texts are not packed
        return counter.get_total_flops() / UNIT


def _with_foreign(pool: GlobalBatch, batch: Batch, given: Sequence[Tensor] = ()) -> GlobalBatch:
    """The pool with the tokens of all negatives brought in: those that are given, or copies of the own ones."""

    def negatives(_: Encoded, __: Tensor, *own: Tensor) -> tuple[Negative, Negative]:
        image_BSD, text_BLD = given or [tokens.clone() for tokens in own]
        return Negative(None, image_BSD), Negative(None, text_BLD, batch.valid_BL)

    return replace(pool, negatives=negatives)


class _Trace(LiveMemory):
    """Live memory after every operation, without weights' gradients, each of which is freed as soon as it is there."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(fake=True)
        self.moments: list[tuple[int, int]] = []
        self._gradients = 0
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._take)

    def _take(self, parameter: Tensor) -> None:
        self._gradients += parameter.numel()
        parameter.grad = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = super().__torch_dispatch__(func, types, args, kwargs)
        self.moments.append((self.live, self._gradients))
        return results
