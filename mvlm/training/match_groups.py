"""ITM's groups in a step: within a micro-batch, across ranks, or across a rank's micro-batches too.

The tokens of a negative travel to the pair that drew it, and their gradient back. If a group spans several
micro-batches, computed one after another, all its tokens are computed beforehand, then their gradients as negatives,
and both are given to the passes that follow (Gao et al., "GradCache", arXiv 2101.06983, section 3.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.batch import IGNORE, Batch, Encoded, GlobalBatch, Negative, Negatives
from mvlm.model.losses.itm import NegativeSampler, ids_of
from mvlm.model.maskvlm import MaskVLM
from mvlm.model.randomness import is_random
from mvlm.runtime import replicas
from mvlm.training.span import Exchange, Known, Span, span_shape

MakeGlobalBatch = Callable[[int, Negatives], GlobalBatch]
"""The global batch for one of a span's micro-batches, given the source of its negatives."""


@dataclass(frozen=True)
class Passes:
    """Computes what is needed before a micro-batch's own passes, with the same dropout.

    Attributes:
        seed_part: seeds a micro-batch's device randomness, given its number in the span.
        scale: what ITM's loss is multiplied by before the micro-batch's own backward pass.
    """

    model: MaskVLM
    seed_part: Callable[[int], None]
    scale: float

    @torch.no_grad()
    def encode(self, wave: int, batch: Batch) -> tuple[Encoded, Tensor, Tensor]:
        """Features, image_BSD and text_BLD."""
        self.seed_part(wave)
        own, views = self.model.encode_pairs(batch)
        return own, *views

    def gradients(
        self, wave: int, batch: Batch, global_batch: GlobalBatch, tokens: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Those of ITM's loss with respect to the tokens of the global batch's negatives."""
        self.seed_part(wave)
        model, objectives = self.model, self.model.objectives
        if not is_random(model):  # a random one must compute all of it to draw the same
            model.objectives = dataclasses.replace(objectives, image=0.0, text=0.0, itc=0.0)
        try:
            loss = model(batch, global_batch)["itm"]
        finally:
            model.objectives = objectives
        return torch.autograd.grad(self.scale * loss, tokens)


@dataclass(frozen=True)
class MatchGroups:
    """The groups of a span, for this rank's micro-batches in it.

    Attributes:
        ids_J2: image and caption of each pair.
        position_J: samples seen before each pair.
    """

    span: Span
    sampler: NegativeSampler
    batches: Sequence[Batch]
    ids_J2: Tensor
    position_J: Tensor

    @classmethod
    def of(cls, span: Span, sampler: NegativeSampler, batches: Sequence[Batch]) -> MatchGroups:
        """All ranks of the span must call."""
        known_J3 = span.whole(torch.cat([torch.cat([ids_of(b), b.position_B[:, None]], 1) for b in batches]))
        return cls(span, sampler, batches, known_J3[:, :2], known_J3[:, 2])

    def counted(self, wave: int) -> Tensor:
        """Which examples of a micro-batch count -> B3."""
        return self.sampler.counted(self.ids_J2, self.span.pairs, self.span.start(wave))

    def global_batches(self, passes: Passes, make: MakeGlobalBatch) -> Iterator[GlobalBatch]:
        """For each of the span's micro-batches in turn; all its ranks must iterate."""
        if self.span.waves > 1:
            yield from self._cached(passes, make)
        else:
            yield make(0, self._exchanged if self.span.ranks > 1 else self.sampler.within(self.batches[0]))

    def _exchanged(
        self, own: Encoded, temperature: Tensor, image_BSD: Tensor, text_BLD: Tensor
    ) -> tuple[Negative, Negative]:
        """The negatives of a span's only micro-batch, in its own passes."""
        span, row_B2 = self.span, self._draw([own], temperature)
        (image_B, text_B), (image_RB, text_RB) = row_B2.unbind(1), span.gather(row_B2).unbind(2)
        valid_BL = span.fetch(self.batches[0].valid_BL.byte(), text_B).bool()
        return (
            Negative(None, Exchange.apply(image_BSD, span, image_B, image_RB)),
            Negative(None, Exchange.apply(text_BLD, span, text_B, text_RB), valid_BL),
        )

    def _cached(self, passes: Passes, make: MakeGlobalBatch) -> Iterator[GlobalBatch]:
        """For several micro-batches, whose negatives and their gradients are computed before the first one's passes."""
        span, waves = self.span, range(self.span.waves)
        owns, *tokens = zip(
            *(passes.encode(w, batch) for w, batch in zip(waves, self.batches, strict=True)), strict=True
        )
        row_m2 = self._draw(owns, passes.model.temperature().detach())
        rows_m, rows_Rm = row_m2.unbind(1), span.gather(row_m2).unbind(2)
        negatives = [
            span.fetch(torch.cat(own), row_m).split(span.pairs) for own, row_m in zip(tokens, rows_m, strict=True)
        ]
        valid_m = torch.cat([batch.valid_BL for batch in self.batches]).byte()
        valids = span.fetch(valid_m, rows_m[1]).bool().split(span.pairs)
        del tokens

        def given(wave: int, image_BSD: Tensor, text_BLD: Tensor) -> GlobalBatch:
            both = Negative(None, image_BSD), Negative(None, text_BLD, valids[wave])
            return make(wave, lambda *_: both)

        gradients = []
        for wave, batch in zip(waves, self.batches, strict=True):
            leaves = [side[wave].detach().requires_grad_() for side in negatives]
            gradients.append(passes.gradients(wave, batch, given(wave, *leaves), leaves))
        own = [
            span.give_back(torch.cat(side), row_Rm).split(span.pairs)
            for side, row_Rm in zip(zip(*gradients, strict=True), rows_Rm, strict=True)
        ]
        del gradients

        def known(wave: int) -> Negatives:
            def both(_: Encoded, __: Tensor, *tokens: Tensor) -> tuple[Negative, Negative]:
                image_BSD, text_BLD = (
                    Known.apply(tokens[side], negatives[side][wave], own[side][wave]) for side in range(2)
                )
                return Negative(None, image_BSD), Negative(None, text_BLD, valids[wave])

            return both

        for wave in waves:
            yield make(wave, known(wave))

    @torch.no_grad()
    def _draw(self, owns: Sequence[Encoded], temperature: Tensor) -> Tensor:
        """The rows of J of negative image and text, for all own pairs -> m2."""
        span = self.span
        image_JE = span.whole(torch.cat([own.image_BE for own in owns]))
        text_JE = span.whole(torch.cat([own.text_BE for own in owns]))
        others = Encoded(image_JE, text_JE, *self.ids_J2.unbind(1))
        drawn = [
            self.sampler.draw(own, others, self.position_J, temperature, span.start(wave))
            for wave, own in enumerate(owns)
        ]
        return torch.cat([torch.stack(rows, 1) for rows in drawn])


def match_groups(model: MaskVLM, micro_batches: list[Batch]) -> list[MatchGroups]:
    """The groups of a rank's micro-batches in a step, by spans of one or several of these; all ranks must call."""
    world, pairs = replicas.world(), len(micro_batches[0])
    sampler = model.sampler(len(micro_batches) * world * pairs if model.objectives.itm else pairs)
    ranks, waves = span_shape(sampler.group, world, pairs)

    def by_rank(own: Tensor) -> Tensor:
        return replicas.all_gather(own, ranks).view(ranks, *own.shape)

    span = Span(ranks, waves, pairs, replicas.rank() % ranks, by_rank)
    if not span.is_local:
        micro_batches = [at_full_length(batch, model.text_length) for batch in micro_batches]
    firsts = range(0, len(micro_batches), waves)
    return [MatchGroups.of(span, sampler, micro_batches[first : first + waves]) for first in firsts]


def at_full_length(batch: Batch, length: int) -> Batch:
    """The batch with its texts padded to a length that is the same on all ranks and in all steps."""
    given = batch.text_BL.shape[1]

    def padded(x_BL: Tensor, value: int) -> Tensor:
        return F.pad(x_BL, (0, length - given), value=value)

    token_T = batch.packing.token_T
    return dataclasses.replace(
        batch,
        text_BL=padded(batch.text_BL, 0),  # any token: it is padding by `valid_BL`
        masked_text_BL=padded(batch.masked_text_BL, 0),
        valid_BL=padded(batch.valid_BL, False),
        target_BL=padded(batch.target_BL, IGNORE),
        packing=dataclasses.replace(batch.packing, token_T=token_T // given * length + token_T % given),
    )
