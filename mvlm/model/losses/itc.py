"""Image-text contrastive loss over the whole global batch: softmax as in ALBEF (section 3.2, without momentum and
queue), or sigmoid as in SigLIP (Zhai et al., ICCV 2023).

The gradient at the features is computed in the forward pass, with the value, so that a rank keeps nothing of the
others' features for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mvlm.batch import Encoded, ItcGradients, MetricAccumulator
from mvlm.kernels.contrastive import CONTRASTIVE, LOG_SUM_EXPS
from mvlm.kernels.sigmoid_contrastive import sigmoid_terms

Blocks = Iterable[tuple[int, list[Tensor]]]
"""Blocks of all ranks' rows of some tensors, each with the row at which this rank's own begin; in a block without them,
so far before its first row that none of them is in it."""


@dataclass(frozen=True)
class Peers:
    """The ranks that share a global batch, as each sees it.

    Attributes:
        circulate: own tensors, of as many rows on every rank -> those of all, in the same blocks at every call. They
            may be sent before the first is asked for, and iterated more than once.
        add_up: the sum of a tensor over all ranks.
        count: ranks.
    """

    circulate: Callable[[list[Tensor]], Blocks] = lambda own: [(0, own)]
    add_up: Callable[[Tensor], Tensor] = torch.detach
    count: int = 1


ALONE = Peers()


def itc_loss(
    own: Encoded,
    temperature: Tensor,
    bias: Tensor | None,
    contrast: ItcGradients,
    parts: int,
    metrics: MetricAccumulator | None = None,
) -> Tensor:
    """A micro-batch's share of ITC over the G pairs, in fp32.

    Softmax: the mean of image-to-text and text-to-image cross-entropy. Sigmoid: the mean over images of the sum over
    texts of -log sigmoid(± (similarity / T + bias)). Its value is the own pairs' mean. Its gradient at the own features
    is that of the whole loss times the number of parts, so that the mean over micro-batches, which data parallelism
    takes, has the gradient of the whole.

    Args:
        own: unit features; the image and the text of a pair are each other's positive.
        temperature: the similarities' divisor.
        bias: added to them; None = softmax.
        contrast: what the function that `begin_contrast` returned for these has computed.
        parts: micro-batches in the global batch.
        metrics: gets the values `temperature` and, with the sigmoid, `contrastive_bias`.
    """
    if metrics:
        metrics.values["temperature"] = temperature.detach().squeeze()
        if bias is not None:
            metrics.values["contrastive_bias"] = bias.detach().squeeze()
    share = _ItcShare.apply(own.image_BE, own.text_BE, temperature, bias, contrast)
    return share * parts / contrast.pairs


@torch.no_grad()
def begin_contrast(
    own: Encoded, temperature: Tensor, bias: Tensor | None, exclude_duplicates: bool, peers: Peers = ALONE
) -> Callable[[], ItcGradients]:
    """Send this rank's features on their way.

    Returns:
        A function that computes, from those of all ranks, what `itc_loss` needs to know of the global batch.

    Args:
        own: all of this rank's pairs in it.
        bias: None = softmax.
        exclude_duplicates: pairs of the same image or the same caption are not negatives of each other.
    """
    ids = [torch.stack([own.image_id_B, own.caption_id_B], 1)] if exclude_duplicates else []
    image_BE, text_BE = own.image_BE.float(), own.text_BE.float()
    blocks = peers.circulate([image_BE, text_BE, *ids])

    @torch.no_grad()
    def finish() -> ItcGradients:
        if bias is None:
            loss_B, at_image_BE, at_text_BE = _softmax(image_BE, text_BE, temperature, ids, blocks, peers)
            at_bias = None
        else:
            loss_B, at_image_BE, at_text_BE, own_part = _sigmoid(image_BE, text_BE, temperature, bias, ids, blocks)
            at_bias = peers.add_up(own_part)
        # s = image · text / T, hence dL/dT = -sum_i image_i · dL/dimage_i / T, with each similarity in one row.
        at_temperature = peers.add_up(-(at_image_BE * image_BE).sum() / temperature.squeeze())
        return ItcGradients(loss_B, at_image_BE, at_text_BE, at_temperature, at_bias, len(image_BE) * peers.count)

    return finish


def _softmax(
    image_BE: Tensor, text_BE: Tensor, temperature: Tensor, ids: list[Tensor], blocks: Blocks, peers: Peers
) -> tuple[Tensor, Tensor, Tensor]:
    """Each own pair's loss, and the gradients of the sum over all pairs at own features."""
    lse_B2 = image_BE.new_full((len(image_BE), 2), float("-inf"))
    for start, (image_UE, text_UE, *their_ids) in blocks:
        image_B, text_B = (
            LOG_SUM_EXPS(one_BE, other_UE, temperature, start, *ids, *their_ids)
            for one_BE, other_UE in ((image_BE, text_UE), (text_BE, image_UE))
        )
        lse_B2 = torch.logaddexp(lse_B2, torch.stack([image_B, text_B], 1))
    image_lse_B, text_lse_B = lse_B2.unbind(1)
    at_image_BE, at_text_BE = torch.zeros_like(image_BE), torch.zeros_like(text_BE)
    for (start, (image_UE, text_UE, *their_ids)), (_, (lse_U2,)) in zip(blocks, peers.circulate([lse_B2]), strict=True):
        image_lse_U, text_lse_U = lse_U2.unbind(1)
        more = *ids, *their_ids
        at_image_BE += CONTRASTIVE(image_BE, text_UE, temperature, start, image_lse_B, text_lse_U, *more)
        at_text_BE += CONTRASTIVE(text_BE, image_UE, temperature, start, text_lse_B, image_lse_U, *more)
    positive_B = (image_BE * text_BE).sum(-1) / temperature
    return lse_B2.mean(1) - positive_B, at_image_BE, at_text_BE


def _sigmoid(
    image_BE: Tensor, text_BE: Tensor, temperature: Tensor, bias: Tensor, ids: list[Tensor], blocks: Blocks
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each own image's loss, the gradients of the sum over all pairs at own features, and own pairs' part of the
    bias's."""
    loss_B, weight_B = image_BE.new_zeros(len(image_BE)), image_BE.new_zeros(len(image_BE))
    at_image_BE, at_text_BE = torch.zeros_like(image_BE), torch.zeros_like(text_BE)
    for start, (image_UE, text_UE, *their_ids) in blocks:
        rows = sigmoid_terms(image_BE, text_UE, temperature, bias, start, *ids, *their_ids)
        columns = sigmoid_terms(text_BE, image_UE, temperature, bias, start, *ids, *their_ids)
        loss_B += rows.loss_B
        weight_B += rows.weight_B
        at_image_BE += rows.gradient_BE
        at_text_BE += columns.gradient_BE
    return loss_B, at_image_BE, at_text_BE, weight_B.sum()


class _ItcShare(torch.autograd.Function):
    """The sum over the micro-batch's own pairs, with the gradient of the sum over all G.

    The features get the whole gradient; temperature and bias get the own pairs' equal share of theirs, so that its sign
    is the same in every micro-batch.
    """

    @staticmethod
    def forward(
        ctx: Any, image_BE: Tensor, text_BE: Tensor, temperature: Tensor, bias: Tensor | None, contrast: ItcGradients
    ) -> Tensor:
        ctx.contrast, ctx.like = contrast, (image_BE.dtype, text_BE.dtype, temperature.dtype)
        return contrast.loss_B.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        whole: ItcGradients = ctx.contrast
        share = grad * len(whole.loss_B) / whole.pairs
        at_image, at_text, at_temperature = (
            gradient.to(dtype)
            for gradient, dtype in zip(
                (whole.at_image_BE * grad, whole.at_text_BE * grad, (whole.at_temperature * share).reshape(1)),
                ctx.like,
                strict=True,
            )
        )
        at_bias = None if whole.at_bias is None else (whole.at_bias * share).reshape(1)
        return at_image, at_text, at_temperature, at_bias, None
