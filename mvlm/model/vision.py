"""Image encoder: timm's, in which masked patches are a learned token or, in a vision transformer, left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mvlm.batch import Batch
from mvlm.kernels.constants import constant
from mvlm.kernels.fusion import take
from mvlm.kernels.views import Views


class MaskedPatchEmbed(nn.Module):
    """A patch embedding whose masked patches are one learned token, before positions are added (SimMIM, section 3).

    A mask for twice as many images as there are asks for two views of each, whose patches are computed once.
    """

    def __init__(self, patch_embed: nn.Module, width: int) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.grid_size = patch_embed.grid_size  # timm asks for it if images may have other sizes
        self.mask_token = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, inputs: tuple[Tensor, Tensor | None]) -> Tensor:
        image_BCHW, patch_mask_BN = inputs
        patches = self.patch_embed(image_BCHW)
        if patch_mask_BN is None:
            return patches
        patches = patches.repeat(len(patch_mask_BN) // len(patches), *[1] * (patches.ndim - 1))
        mask = patch_mask_BN.reshape(*patches.shape[:-1], 1)
        return torch.where(mask, self.mask_token.to(patches.dtype), patches)


class VisiblePatches(nn.Module):
    """Replaces timm's patch dropout, which comes after positions are added, and lets only visible patches through (MAE,
    section 3).

    Attributes:
        visible_BV: the patches to let through during one pass; None = all.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.visible_BV: Tensor | None = None

    def forward(self, tokens_BSD: Tensor) -> Tensor:
        if self.visible_BV is None:
            return tokens_BSD
        visible_BVD = take(tokens_BSD[:, self.prefix :], self.visible_BV)
        return torch.cat([tokens_BSD[:, : self.prefix], visible_BVD], dim=1)


class VisionEncoder(nn.Module):
    """uint8 images to token features, CLS first.

    Args:
        vit: a vision transformer of timm that has a CLS token, or a `Convolutional` in its place.
        drops: masked patches are left out rather than replaced by a learned token.
    """

    def __init__(self, vit: Any, drops: bool = False) -> None:
        super().__init__()
        self.grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)
        self.patch: int = vit.patch_embed.patch_size[0]
        self.width: int = vit.embed_dim
        self.mean, self.std = (tuple(vit.pretrained_cfg[name]) for name in ("mean", "std"))
        self.prefix: int = vit.num_prefix_tokens
        self.drops = drops
        if drops:
            vit.patch_drop = VisiblePatches(self.prefix)
        else:
            vit.patch_embed = MaskedPatchEmbed(vit.patch_embed, getattr(vit, "patch_width", self.width))
        vit.forward_head = _keep_tokens  # called as a module, as ZeRO-3 needs, the ViT then gives every token
        self.vit = vit

    def forward(self, image_BCHW: Tensor, patch_mask_BN: Tensor | None = None) -> Tensor:
        """uint8 BCHW, bool BN (True = masked) -> BSD with CLS first; other prefix tokens (registers) are left out.

        A mask of 2B rows asks for two views of every image -> 2BSD. If masked patches are dropped, S is without them.
        """
        if self.drops:
            visible_BV = None if patch_mask_BN is None else visible_places(patch_mask_BN, _visible_count(patch_mask_BN))
            return self._visible(image_BCHW, visible_BV)
        return self._features((self._pixels(image_BCHW), patch_mask_BN))

    def _visible(self, image_BCHW: Tensor, visible_BV: Tensor | None) -> Tensor:
        self.vit.patch_drop.visible_BV = visible_BV
        try:
            return self._features(self._pixels(image_BCHW))
        finally:
            self.vit.patch_drop.visible_BV = None

    def _features(self, inputs: Tensor | tuple[Tensor, Tensor | None]) -> Tensor:
        tokens = self.vit(inputs)
        return tokens if self.prefix == 1 else torch.cat([tokens[:, :1], tokens[:, self.prefix :]], dim=1)

    def _pixels(self, image_BCHW: Tensor) -> Tensor:
        return self.normalize(image_BCHW).to(next(self.vit.parameters()).dtype)

    def views(self, batch: Batch, views: Views) -> list[Tensor]:
        """The whole images, the masked ones or both -> BSD each, in one pass if they are equally long."""
        images, mask_BN = batch.image_BCHW, batch.patch_mask_BN
        if views.whole and views.masked and not self.drops:
            if batch.masked_image_BCHW is not images:
                images = torch.cat([images, batch.masked_image_BCHW])
            return list(self(images, torch.cat([torch.zeros_like(mask_BN), mask_BN])).chunk(2))
        features = [self(images)] if views.whole else []
        if views.masked and self.drops:
            visible_BV = visible_places(mask_BN, mask_BN.shape[1] - batch.masked.patch_BC.shape[1])
            features.append(self._visible(batch.masked_image_BCHW, visible_BV))
        elif views.masked:
            features.append(self(batch.masked_image_BCHW, mask_BN))
        return features

    def normalize(self, image_BCHW: Tensor) -> Tensor:
        """uint8 to fp32 with the encoder's own mean and standard deviation."""
        mean, std = (constant(values, image_BCHW.device).view(3, 1, 1) for values in (self.mean, self.std))
        return (image_BCHW.float() / 255 - mean) / std

    def patchify(self, image_BCHW: Tensor) -> Tensor:
        """BCHW -> BNQ, each patch flattened as rows, columns, channels (MAE's order)."""
        batch, (rows, cols), p = image_BCHW.shape[0], self.grid, self.patch
        cells = image_BCHW.reshape(batch, 3, rows, p, cols, p)
        return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * cols, p * p * 3)

    def unpatchify(self, patches_BNQ: Tensor) -> Tensor:
        """The inverse of `patchify`."""
        batch, (rows, cols), p = patches_BNQ.shape[0], self.grid, self.patch
        cells = patches_BNQ.reshape(batch, rows, cols, p, p, 3)
        return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, rows * p, cols * p)


def visible_places(patch_mask_BN: Tensor, count: int) -> Tensor:
    """The `count` patches of each image that are not masked, in their order -> BV."""
    return patch_mask_BN.int().argsort(dim=1, stable=True)[:, :count]


def _visible_count(patch_mask_BN: Tensor) -> int:
    return int((~patch_mask_BN[0]).sum())


def _keep_tokens(tokens_BSD: Tensor) -> Tensor:
    return tokens_BSD
