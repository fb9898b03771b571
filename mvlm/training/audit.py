"""Recomputes micro-batches on another rank, to find a processor that miscomputes.

Some do so without any error, now and then or only for some operands (Hochschild et al., Cores that don't count, HotOS
2021). What a micro-batch received from other ranks, all features' gradients and its negatives' tokens, is handed on
with it, so that the next rank computes the same passes from the same weights without exchanging anything in them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvlm.batch import Batch, Counts, Encoded, GlobalBatch, ItcGradients, LabelledBatch, Losses, Negative, apply
from mvlm.config.schema import Objectives
from mvlm.model.randomness import seed_dropout
from mvlm.runtime import dist
from mvlm.training.span import Known
from mvlm.training.zero.checksums import sum_bits

AUDITED = 0xA0D17  # distinguishes these draws from others of the same seed


@dataclass
class Recording:
    """The passes of a micro-batch: what they begin with, what they received from other ranks, and what they computed.

    Attributes:
        start: where the micro-batch begins in the global batch.
        contrast: ITC's gradients at its pairs, if any.
        negatives: if any; `at_tokens`: the gradients at its own image and text tokens as other pairs' negatives, where
            tokens travel.
        factor: the gradient that its backward pass began with.
        sums: sums of bits, by what was computed.
    """

    start: int
    batch: Batch | LabelledBatch
    counts: Counts | None = None
    contrast: ItcGradients | None = None
    negatives: tuple[Negative, Negative] | None = None
    at_tokens: list[Tensor | None] = field(default_factory=lambda: [None, None])
    factor: Tensor | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)

    def recorded(self, given: GlobalBatch) -> GlobalBatch:
        """The global batch, wrapped so that what is used of it is recorded."""

        def contrast(own: Encoded, *scale: Any) -> Callable[[], ItcGradients]:
            _note_sent(self.sums, own, *scale)
            finish = given.contrast(own, *scale)

            def finishing() -> ItcGradients:
                self.contrast = finish()
                return self.contrast

            return finishing

        def negatives(own: Encoded, temperature: Tensor, *tokens: Tensor) -> tuple[Negative, Negative]:
            self.sums["tokens"] = sum_bits(tokens)
            travelling = [side.view_as(side) for side in tokens]
            found = given.negatives(own, temperature, travelling[0], travelling[1])
            for number, (side, negative) in enumerate(zip(travelling, found, strict=True)):
                if negative.tokens_BLD is not None and side.requires_grad:
                    side.register_hook(partial(self._keep, number))
            self.negatives = found[0], found[1]
            return found

        self.counts = given.counts
        return replace(given, contrast=contrast, negatives=negatives)

    def keep_factor(self, factor: Tensor) -> None:
        self.factor = factor.detach().clone()

    def _keep(self, number: int, gradient: Tensor) -> None:
        self.at_tokens[number] = gradient.detach()

    def repeated(self, sums: dict[str, Tensor]) -> GlobalBatch | None:
        """The recorded global batch, replayed without the other ranks.

        Args:
            sums: gets the sums of what would be sent to them.
        """
        if self.counts is None:
            return None

        def contrast(own: Encoded, *scale: Any) -> Callable[[], ItcGradients]:
            _note_sent(sums, own, *scale)
            return lambda: self.contrast  # type: ignore[return-value]

        def negatives(_: Encoded, __: Tensor, *tokens: Tensor) -> tuple[Negative, Negative]:
            sums["tokens"] = sum_bits(tokens)
            assert self.negatives
            first, second = (
                each
                if each.tokens_BLD is None or at_tokens is None
                else replace(each, tokens_BLD=Known.apply(side, each.tokens_BLD, at_tokens))
                for each, side, at_tokens in zip(self.negatives, tokens, self.at_tokens, strict=True)
            )
            return first, second

        return GlobalBatch(contrast, negatives, self.counts)

    def to(self, device: torch.device) -> Recording:
        """A copy with its tensors on a device, detached from the graph."""
        handed = [self.batch, self.counts, self.contrast, *(self.negatives or (None, None))]
        batch, counts, contrast, *negatives = (one and apply(one, _to(device)) for one in handed)
        return Recording(
            self.start,
            batch,
            counts,
            contrast,
            (negatives[0], negatives[1]) if self.negatives else None,
            [_to(device)(gradient) for gradient in self.at_tokens],
            _to(device)(self.factor),
            {name: _to(device)(bits) for name, bits in self.sums.items()},
        )


def _to(device: torch.device) -> Callable[[Any], Any]:
    return lambda value: value.detach().to(device) if torch.is_tensor(value) else value


class Audit:
    """Draws the micro-batches to recompute, the same on all ranks, and compares the results.

    Args:
        share: of the micro-batches.
        model: computes losses; all ranks' weights are the same, or divided.
        named: names and parameters of what is trained.
        seed: of the run.

    Attributes:
        whose: the rank whose micro-batches this one computes, and its node.
    """

    def __init__(
        self,
        share: float,
        model: nn.Module,
        named: Sequence[tuple[str, nn.Parameter]],
        objectives: Objectives,
        seed: int,
    ) -> None:
        self._share, self._model, self._named, self._objectives, self._seed = share, model, named, objectives, seed
        self._found: tuple[int, Tensor] | None = None
        self.whose = "rank {} on {}".format(*dist.hand_on((dist.rank(), socket.gethostname())))

    def is_due(self, step: int, number: int) -> bool:
        """Whether every rank's micro-batch of this number is drawn in a step."""
        draws = np.random.default_rng((self._seed % 2**64, step, number, AUDITED))
        return bool(draws.random() < self._share)

    def miscomputed(self, step: int) -> Tensor | None:
        """1.0 if the rank before this one computed other bits in a step than this one did, else 0.0.

        A scalar on the device; None if nothing of the step was recomputed.
        """
        return self._found[1] if self._found and self._found[0] == step else None

    def watch(
        self,
        passes: Callable[..., Losses],
        batch: Batch | LabelledBatch,
        global_batch: GlobalBatch | None,
        step: int,
        start: int,
    ) -> Losses:
        """Run a micro-batch's passes, and repeat those of the rank before; all ranks must call.

        Args:
            passes: takes a global batch, and what to call with the losses and their sum before the backward pass.
            start: where the micro-batch begins in the global batch.
        """
        recording = Recording(start, batch)

        def before_backward(losses: Losses, total: Tensor) -> None:
            total.register_hook(recording.keep_factor)
            recording.sums |= _of_losses(losses)

        with self._summing(recording.sums, dropping=False):
            losses = passes(global_batch and recording.recorded(global_batch), before_backward)
        differs = self._differs(recording, step)
        earlier = self.miscomputed(step)
        self._found = step, differs if earlier is None else torch.maximum(earlier, differs)
        return losses

    def _differs(self, recording: Recording, step: int) -> Tensor:
        handed: Recording = dist.hand_on(recording.to(torch.device("cpu"))).to(dist.device())
        again: dict[str, Tensor] = {}
        seed_dropout(self._seed, step, handed.start)
        with self._summing(again, dropping=True):
            losses = self._model(handed.batch, handed.repeated(again))
            again |= _of_losses(losses)
            parameters = [parameter for _, parameter in self._named]
            torch.autograd.grad(self._objectives.total(losses), parameters, handed.factor, allow_unused=True)
        if again.keys() != handed.sums.keys():
            return torch.ones((), device=dist.device())
        return torch.stack([again[name] != handed.sums[name] for name in again]).any().float()

    @contextmanager
    def _summing(self, sums: dict[str, Tensor], dropping: bool) -> Iterator[None]:
        """Sum the bits of each parameter's gradient as it comes.

        Args:
            dropping: replace it with zeros that take no memory, so that no gradient is kept until the last is there.
        """

        def add(name: str, gradient: Tensor) -> Tensor | None:
            sums[name] = sum_bits([gradient])
            return gradient.new_zeros(()).expand_as(gradient) if dropping else None

        hooks = [parameter.register_hook(partial(add, name)) for name, parameter in self._named]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _note_sent(sums: dict[str, Tensor], own: Encoded, *scale: Tensor | None) -> None:
    """Sum the bits of what contrast is computed from: in the repeated passes, nothing else may depend on it."""
    sums["features"] = sum_bits([own.image_BE, own.text_BE, *(number for number in scale if number is not None)])


def _of_losses(losses: Losses) -> dict[str, Tensor]:
    return {f"loss {name}": sum_bits([loss]) for name, loss in losses.items()}
