"""Image encoder: any timm vision transformer with a CLS token, with patches hidden by a learned mask token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mvlm.batch import Batch
from mvlm.config.schema import Model
from mvlm.errors import UserError
from mvlm.kernels.constants import constant
from mvlm.model.filling import LAST_NORM, Filled, check_nothing_is_left_out, fill, fit_image_positions
from mvlm.model.finite import require_finite
from mvlm.model.foreign import read_tensors
from mvlm.model.names import Foreign, image_encoder, with_layout_of
from mvlm.model.readings import take
from mvlm.model.views import Views
from mvlm.runtime import hub

MASK_TOKEN = "patch_embed.mask_token"

POSITION_STD = 3**-0.5
"""Of the patches' random position embeddings: as large as what a random convolution makes of an even patch of value 1.

Beside such patches timm's 0.02 is nothing, and a small model takes thousands of steps to tell where a thing stands."""


class MaskedPatchEmbed(nn.Module):
    """A patch embedding whose hidden patches are one learned token, before positions are added (SimMIM, section 3).

    A mask for twice as many images as there are asks for two views of each, of which patches are computed once.
    """

    def __init__(self, patch_embed: nn.Module, width: int) -> None:
        super().__init__()
        self.patch_embed = patch_embed
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
    """Stands where timm's encoders may drop patches, once positions are added: the others go through (MAE, section 3).

    Attributes:
        visible_BV: the patches that go through, for as long as one pass takes; None = all.
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

    Attributes:
        filled: what became of the weights it started from; None = random ones, or a checkpoint's that fills it later.
    """

    def __init__(self, config: Model, load_weights: bool, drops: bool = False) -> None:
        super().__init__()
        source = config.vision_weights if load_weights else "random"
        vit = _create(config, pretrained=source == "pretrained")
        _check(vit, config)
        self.filled: Filled | None = None
        mask_token: Tensor | None = None
        if source == "pretrained":
            self.filled = _filled_by_timm(vit, config)
        elif source != "random":
            self.filled, mask_token = _fill(vit, config)
        elif load_weights and getattr(vit, "pos_embed", None) is not None:
            nn.init.trunc_normal_(vit.pos_embed.data[:, -vit.patch_embed.num_patches :], std=POSITION_STD)
        self.size = config.image_size
        self.grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)
        self.patch = self.size // self.grid[0]
        self.width: int = vit.embed_dim
        self.mean, self.std = (tuple(vit.pretrained_cfg[name]) for name in ("mean", "std"))
        self.prefix: int = vit.num_prefix_tokens
        self.drops = drops
        if drops:
            if not isinstance(getattr(vit, "patch_drop", None), nn.Identity):
                raise UserError(
                    f"model.vision {config.vision!r} cannot leave out patches: set objectives.image_masking = 'token', "
                    "or choose a plain vision transformer without patch_drop_rate."
                )
            vit.patch_drop = VisiblePatches(self.prefix)
        else:
            vit.patch_embed = MaskedPatchEmbed(vit.patch_embed, self.width)
            if self.filled and mask_token is not None:
                vit.patch_embed.mask_token.data.copy_(mask_token)
                self.filled.matched.append(MASK_TOKEN)
        vit.forward_head = _keep_tokens  # called as a module, as ZeRO-3 needs, the ViT then gives every token
        self.vit: Any = vit

    def forward(self, image_BCHW: Tensor, patch_mask_BN: Tensor | None = None) -> Tensor:
        """uint8 BCHW, bool BN (True = hidden) -> BSD with CLS first; other prefix tokens (registers) are left out.

        A mask of 2B rows asks for two views of every image -> 2BSD. Where hidden patches are dropped, they are missing
        in S.
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
        patch_embed = self.vit.patch_embed if self.drops else self.vit.patch_embed.patch_embed
        return self.normalize(image_BCHW).to(patch_embed.proj.weight.dtype)

    def views(self, batch: Batch, views: Views) -> list[Tensor]:
        """The whole images, the masked ones or both -> BSD each, in one pass where they are equally long."""
        images, mask_BN = batch.image_BCHW, batch.patch_mask_BN
        if views.whole and views.masked and not self.drops:
            if batch.masked_image_BCHW is not images:
                images = torch.cat([images, batch.masked_image_BCHW])
            return list(self(images, torch.cat([torch.zeros_like(mask_BN), mask_BN])).chunk(2))
        features = [self(images)] if views.whole else []
        if views.masked and self.drops:
            visible_BV = visible_places(mask_BN, mask_BN.shape[1] - batch.hidden.patch_BC.shape[1])
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
    """The `count` patches of each image that are not hidden, in their order -> BV."""
    return patch_mask_BN.int().argsort(dim=1, stable=True)[:, :count]


def _visible_count(patch_mask_BN: Tensor) -> int:
    return int((~patch_mask_BN[0]).sum())


def _create(config: Model, pretrained: bool) -> Any:
    name = f"local-dir:{config.vision}" if Path(config.vision).is_dir() else config.vision
    arguments: dict[str, Any] = dict(config.vision_args, img_size=config.image_size, num_classes=0, global_pool="token")
    if config.dropout:
        arguments |= dict.fromkeys(("drop_rate", "proj_drop_rate", "attn_drop_rate"), config.dropout)
    if pretrained or name.startswith(("hf-hub:", "hf_hub:")):
        hub.ask()
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # timm and the hub raise many kinds; all mean this name or these arguments cannot be had
        raise UserError(
            f"model.vision {config.vision!r} cannot be built with vision_weights={config.vision_weights!r} "
            f"({hub.reason(error)}): name a vision transformer with a CLS token, check vision_args, or use a local "
            "folder or 'random'."
        ) from error


def _filled_by_timm(vit: Any, config: Model) -> Filled:
    """timm has loaded every tensor, or has refused; positions are the only ones that it fits."""
    filled = Filled("image encoder", f"timm's {config.vision}", [name for name, _ in vit.named_parameters()])
    for name, weight in vit.named_parameters():
        require_finite(name, weight, filled.source)
    trained_at = vit.pretrained_cfg.get("input_size", (3, config.image_size))[-1]
    if "pos_embed" in filled.matched and trained_at != config.image_size:
        *_, positions, width = vit.pos_embed.shape
        patches = (trained_at // vit.patch_embed.patch_size[0]) ** 2
        there = positions - vit.patch_embed.num_patches + patches
        filled.matched.remove("pos_embed")
        filled.resized["pos_embed"] = (1, there, width), (1, positions, width)
    return filled


def _fill(vit: Any, config: Model) -> tuple[Filled, Tensor | None]:
    """Give the encoder the weights of a checkpoint of others, and those of its mask token where that has one."""
    where = config.vision_weights
    tensors = read_tensors(where)
    foreign = image_encoder(tensors)
    if foreign is None:
        raise UserError(
            f"{where} holds no image encoder of a known kind (its tensors begin with {', '.join(list(tensors)[:2])}): "
            "give a checkpoint of timm, MAE, SimMIM, ALBEF, BLIP or a transformers ViT to model.vision_weights."
        )
    _check_pixels(vit, foreign, config)
    foreign = replace(foreign, tensors=with_layout_of(foreign.tensors, {name for name, _ in vit.named_parameters()}))
    filled = Filled("image encoder", f"{where} ({foreign.family})")
    check_nothing_is_left_out(vit, foreign, filled.source)
    fit = fit_image_positions(vit, tuple(vit.patch_embed.grid_size))
    advice = "set model.vision and model.vision_args to the encoder that the checkpoint holds"
    fill(vit, foreign, filled, fit, LAST_NORM, advice)
    token = foreign.mask_token
    return filled, token if token is not None and token.shape == (vit.embed_dim,) else None


def _check_pixels(vit: Any, foreign: Foreign, config: Model) -> None:
    """The encoder must see pixels as it did in training, unless the user says otherwise."""
    given = config.vision_args.get("pretrained_cfg_overlay", {})
    here = tuple(tuple(vit.pretrained_cfg[name]) for name in ("mean", "std"))
    if foreign.pixels is not None and foreign.pixels != here and not {"mean", "std"} <= given.keys():
        mean, std = (list(values) for values in foreign.pixels)
        raise UserError(
            f"{config.vision_weights} ({foreign.family}) was trained on pixels of mean {mean} and std {std}, and "
            f"model.vision {config.vision!r} has {list(here[0])} and {list(here[1])}: say which it is to be by "
            f"model.vision_args.pretrained_cfg_overlay = {{mean = {mean}, std = {std}}}."
        )


def _check(vit: Any, config: Model) -> None:
    if getattr(vit, "cls_token", None) is None or not hasattr(vit, "patch_embed"):
        raise UserError(f"model.vision {config.vision!r} has no CLS token: choose a vision transformer that has one.")
    patch = vit.patch_embed.patch_size
    if patch[0] != patch[1] or config.image_size % patch[0]:
        raise UserError(
            f"model.image_size {config.image_size} is no multiple of the {patch[0]} x {patch[1]} patches of "
            f"{config.vision!r}: change one of the two."
        )
    if config.vision_args.get("patch_drop_rate"):
        raise UserError(
            "model.vision_args.patch_drop_rate leaves out patches at random, so that masked ones lose their places: "
            "take it out; objectives.image_masking = 'drop' leaves out the masked ones."
        )


def _keep_tokens(tokens_BSD: Tensor) -> Tensor:
    return tokens_BSD
