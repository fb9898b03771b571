"""The heads on the encoders: contrastive projections and temperature, matching, token and pixel prediction."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mvlm.config.schema import Model
from mvlm.errors import UserError
from mvlm.kernels.fusion import FUSION, Stream
from mvlm.model.fusion import CrossEncoder, init_linear
from mvlm.model.vision import visible_places


class Projection(nn.Module):
    """CLS feature to a unit vector of the contrastive space, in fp32."""

    def __init__(self, width: int, config: Model) -> None:
        super().__init__()
        self.linear = nn.Linear(width, config.contrastive_width)
        init_linear(self.linear, config.cross_init_std)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        return F.normalize(self.linear(tokens_BLD[:, 0]).float(), dim=-1)


class _Clamp(torch.autograd.Function):
    """A clamp whose gradient passes unless descent along it would lead further out, so that a value can come back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, lowest: float, highest: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.bounds = lowest, highest
        return value.clamp(lowest, highest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (value,), (lowest, highest) = ctx.saved_tensors, ctx.bounds
        outward = ((value <= lowest) & (grad > 0)) | ((value >= highest) & (grad < 0))
        return grad.masked_fill(outward, 0), None, None


class Temperature(nn.Module):
    """The learned temperature of the contrastive softmax, clamped."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.bounds = config.temperature_min, config.temperature_max
        self.value = nn.Parameter(torch.full((1,), config.temperature))

    def forward(self) -> Tensor:
        return _Clamp.apply(self.value.float(), *self.bounds)


class SigmoidTemperature(nn.Module):
    """The sigmoid's divisor exp(-t'), with t' learned from log 10 and unbounded (SigLIP, section 3.2).

    The parameter is the change of t', of which bf16 keeps fine steps, as it would not of t' itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        return (-math.log(10) - self.change.float()).exp()


class ContrastiveBias(nn.Module):
    """What the sigmoid adds to the similarities, learned from -10 (SigLIP, section 3.2), likewise as a change."""

    def __init__(self) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        return self.change.float() - 10.0


class MatchHead(nn.Module):
    """The two cross encoders' CLS outputs, multiplied, to "no match" / "match"."""

    def __init__(self, image_width: int, text_width: int, config: Model) -> None:
        super().__init__()
        self.align = nn.Identity() if image_width == text_width else nn.Linear(text_width, image_width)
        self.classifier = nn.Linear(image_width, 2)
        self.apply(lambda module: init_linear(module, config.cross_init_std))

    def forward(self, image_D: Tensor, text_D: Tensor) -> Tensor:
        """... x D of each -> ... x 2."""
        return self.classifier(image_D * self.align(text_D)).float()


class MlmHead(nn.Module):
    """One fully connected classifier over the vocabulary; its weight starts as, or is, the text encoder's embedding.

    Raises:
        UserError: that is asked for although the encoder's tokens and its embedding differ in width, as ALBERT's do.
    """

    def __init__(self, width: int, embedding: nn.Embedding, pretrained: bool, config: Model) -> None:
        super().__init__()
        vocabulary, own = embedding.weight.shape
        fits = own == width
        if not fits and (config.tie_classifier or config.classifier_init == "embedding"):
            asked = "tie_classifier = true" if config.tie_classifier else "classifier_init = 'embedding'"
            raise UserError(
                f"model.{asked} takes the MLM head from {config.text!r}'s embeddings, which have {own} values, but its "
                f"tokens have {width}: leave it out."
            )
        self.classifier = nn.Linear(width, vocabulary)
        init_linear(self.classifier, config.cross_init_std)
        if config.tie_classifier:
            self.classifier.weight = embedding.weight
        elif config.classifier_init == "embedding" or (config.classifier_init == "auto" and pretrained and fits):
            self.classifier.weight.data.copy_(embedding.weight.data)

    def forward(self, tokens_MD: Tensor) -> Tensor:
        """... x D -> ... x V."""
        return self.classifier(tokens_MD)


class MaskTokens(nn.Module):
    """Puts dropped patches back as one learned token, and positions on all patches (MAE, section 3)."""

    position_ND: Tensor

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.token, std=0.02)
        rows, columns = (torch.arange(side, dtype=torch.float32) for side in grid)
        position_ND = torch.cat(
            [
                waves(rows.repeat_interleave(grid[1]), width // 2),
                waves(columns.repeat(grid[0]), width - width // 2),
            ],
            dim=1,
        )
        self.register_buffer("position_ND", position_ND, persistent=False)

    def forward(self, visible_BSD: Tensor, patch_mask_BN: Tensor) -> Tensor:
        """CLS and the visible patches -> CLS and all patches."""
        cls_B1D, patches_BVD = visible_BSD[:, :1], visible_BSD[:, 1:]
        place_BV1 = visible_places(patch_mask_BN, patches_BVD.shape[1])[:, :, None]
        token_BND = self.token.to(visible_BSD.dtype).expand(*patch_mask_BN.shape, -1)
        patches_BND = token_BND.scatter(1, place_BV1.expand_as(patches_BVD), patches_BVD)
        return torch.cat([cls_B1D, patches_BND + self.position_ND.to(visible_BSD.dtype)], dim=1)


def waves(position_N: Tensor, width: int) -> Tensor:
    """Sines and cosines of a position at `width` wavelengths -> N x width (Vaswani et al., 2017, section 3.5)."""
    half = (width + 1) // 2
    frequency = 10000 ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = position_N[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]


class ImageDecoder(nn.Module):
    """Cross-attention blocks that read the whole text, then a linear layer to the values of each patch.

    Args:
        drops: masked patches do not come through the encoder; they are put in before the blocks.
    """

    def __init__(
        self, width: int, text_width: int, patch: int, grid: tuple[int, int], config: Model, drops: bool = False
    ) -> None:
        super().__init__()
        self.mask_tokens = MaskTokens(width, grid) if drops else None
        self.blocks = CrossEncoder(width, text_width, config.decoder_depth, config)
        self.pixels = nn.Linear(width, 3 * patch * patch)
        init_linear(self.pixels, config.cross_init_std)

    def forward(
        self,
        fused_BSD: Tensor,
        text_BLD: Tensor,
        valid_BL: Tensor,
        patch_mask_BN: Tensor,
        patch_BC: Tensor | None = None,
    ) -> Tensor:
        """BSD -> BNQ, or BCQ of the patches `patch_BC` alone; CLS takes part in the blocks and predicts nothing."""
        if self.mask_tokens is not None:
            fused_BSD = self.mask_tokens(fused_BSD, patch_mask_BN)
        if patch_BC is None:
            return self.pixels(self.blocks(fused_BSD, text_BLD, context_valid_BU=valid_BL)[:, 1:])
        stream = Stream(fused_BSD, text_BLD, patch_BC + 1)
        return self.pixels(FUSION(self.blocks, stream, context_valid_BU=valid_BL)[0])
