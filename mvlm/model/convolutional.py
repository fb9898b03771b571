"""A convolutional network of timm in place of a vision transformer: the last feature map's cells are its tokens.

Its batch norms are affine maps with the statistics of pretraining folded in: no image's features depend on what else is
in the batch, so a micro-batch, a rank and an evaluation see the same network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FixedNorm(nn.Module):
    """A batch norm that no longer updates its statistics, and the activation that timm puts into it.

    Attributes:
        eps: of the batch norm, for folding.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(norm.num_features))
        self.bias = nn.Parameter(torch.zeros(norm.num_features))
        self.act: nn.Module = getattr(norm, "act", nn.Identity())
        self.eps = norm.eps

    def forward(self, map_BCHW: Tensor) -> Tensor:
        return self.act(torch.addcmul(self.bias[:, None, None], map_BCHW, self.weight[:, None, None]))


class PixelPatches(nn.Module):
    """Replaces a vision transformer's patch embedding, and leaves patches as pixels: BCHW -> BNQ.

    A masked patch is thus a learned patch of pixels, put in before the first convolution.
    """

    def __init__(self, side: int, patch: int) -> None:
        super().__init__()
        self.patch_size = patch, patch
        self.grid_size = side // patch, side // patch
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.width = 3 * patch * patch

    def forward(self, image_BCHW: Tensor) -> Tensor:
        (rows, columns), p = self.grid_size, self.patch_size[0]
        cells = image_BCHW.reshape(-1, 3, rows, p, columns, p)
        return cells.permute(0, 2, 4, 3, 5, 1).reshape(-1, rows * columns, self.width)

    def joined(self, patches_BNQ: Tensor) -> Tensor:
        """The inverse -> BCHW."""
        (rows, columns), p = self.grid_size, self.patch_size[0]
        cells = patches_BNQ.reshape(-1, rows, columns, p, p, 3)
        return cells.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, rows * p, columns * p)


class Convolutional(nn.Module):
    """Patches of pixels -> BSD: the feature map's mean as CLS, and a token for each patch of the network's stride.

    Args:
        trunk: of timm, without a classifier.
        side: of images, in pixels, a multiple of the stride.
        width: of tokens, which go through a norm, and before it a linear layer if this is not the feature map's own
            width; 0 = that.
    """

    num_prefix_tokens = 1

    def __init__(self, trunk: Any, side: int, width: int = 0) -> None:
        super().__init__()
        self.pretrained_cfg = trunk.pretrained_cfg
        self.patch_embed: Any = PixelPatches(side, trunk.feature_info[-1]["reduction"])
        channels: int = trunk.num_features
        fix_norms(trunk)
        self.trunk = trunk
        self.embed_dim = width or channels
        project = nn.Linear(channels, self.embed_dim) if self.embed_dim != channels else nn.Identity()
        self.embed = nn.Sequential(project, nn.LayerNorm(self.embed_dim))

    @property
    def patch_width(self) -> int:
        """Values per patch."""
        return int(self.patch_embed.width)

    def forward(self, inputs: tuple[Tensor, Tensor | None]) -> Tensor:
        """Images BCHW and masked patches BN -> BSD."""
        grid = self.patch_embed.patch_embed
        map_BDHW = self.trunk.forward_features(grid.joined(self.patch_embed(inputs)))
        tokens_BND = map_BDHW.flatten(2).transpose(1, 2)
        return self.embed(torch.cat([tokens_BND.mean(dim=1, keepdim=True), tokens_BND], dim=1))


def fix_norms(module: nn.Module) -> None:
    """Replace every batch norm below a module by a `FixedNorm`."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FixedNorm(child))
        else:
            fix_norms(child)


def folded(trunk: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors under timm's names with each batch norm's statistics folded into its weight and bias."""
    found = dict(tensors)
    for name, norm in trunk.named_modules():
        if isinstance(norm, FixedNorm) and f"{name}.running_var" in tensors:
            mean, var = (found.pop(f"{name}.{key}").double() for key in ("running_mean", "running_var"))
            found.pop(f"{name}.num_batches_tracked", None)
            weight = tensors[f"{name}.weight"].double() / (var + norm.eps).sqrt()
            found[f"{name}.weight"] = weight.float()
            found[f"{name}.bias"] = (tensors[f"{name}.bias"].double() - mean * weight).float()
    return found
