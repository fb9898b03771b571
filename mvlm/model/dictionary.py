"""An untrained convolutional layer, whose filters are the patches that a corpus is made of.

Pictures are described by how much each of their cells resembles each patch; k-means finds the patches in the pictures
themselves (Coates, Ng and Lee 2011, An Analysis of Single-Layer Networks in Unsupervised Feature Learning).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "patch_dictionary"
"""Its name in `model.vision`."""

CELL = 16
"""Side of a cell, in pixels; each cell has features of its own."""

SIDE = 6
"""Side of a patch, in pixels."""

STRIDE = 4
"""Pixels between the places compared with patches."""

EVEN = 10 / 127.5
"""Contrast below which a patch passes for even, in units of normalized pixels."""

THRESHOLD = 0.25
"""The least resemblance that counts."""

QUADRANTS = 4


class PatchDictionary(nn.Module):
    """Pixels to how often each patch is seen in each cell, and the cell's colour.

    A cell's features go into its quadrant's part of the channels, so that the mean of all cells keeps quadrants apart.

    Args:
        patches: in the dictionary; a patch and its negative are two features.
        dropout: of a picture's features in training, each in all cells of a quadrant.

    Attributes:
        filters, bias: of the patches, whitening included.
        mean, scale: these bring a cell's features to mean 0 and variance 1.
    """

    def __init__(self, patches: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        self.pretrained_cfg: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        self.feature_info = [{"reduction": CELL}]
        features = 2 * patches + 3
        self.num_features = QUADRANTS * features
        self.dropout = dropout
        self.filters = nn.Parameter(torch.empty(patches, 3, SIDE, SIDE))
        self.bias = nn.Parameter(torch.zeros(patches))
        self.mean = nn.Parameter(torch.zeros(features))
        self.scale = nn.Parameter(torch.ones(features))
        nn.init.normal_(self.filters, std=self.filters[0].numel() ** -0.5)

    def forward_features(self, image_BCHW: Tensor) -> Tensor:
        """As timm's networks have it: normalized pixels BCHW -> BDhw, a cell each."""
        return self(image_BCHW)  # called as a module, as ZeRO-3 needs

    def forward(self, image_BCHW: Tensor) -> Tensor:
        features_BFhw = (self.described(image_BCHW) - self.mean[:, None, None]) * self.scale[:, None, None]
        rows, columns = features_BFhw.shape[2:]
        quadrant_Qhw = _quadrants(rows, columns, features_BFhw)
        features_BDhw = torch.cat([features_BFhw * quadrant_hw for quadrant_hw in quadrant_Qhw], dim=1)
        return F.dropout2d(features_BDhw, self.dropout, self.training)

    def described(self, image_BCHW: Tensor) -> Tensor:
        """The same before features are brought to mean 0 and variance 1 -> BFhw."""
        border = (SIDE - STRIDE) // 2
        alike_BKyx = self.resemblance(F.pad(image_BCHW, [border] * 4, mode="replicate"))
        both = torch.cat([F.relu(alike_BKyx - THRESHOLD), F.relu(-alike_BKyx - THRESHOLD)], dim=1)
        seen_BFhw = (F.avg_pool2d(both, CELL // STRIDE) + 1e-6).sqrt()
        return torch.cat([seen_BFhw, F.avg_pool2d(image_BCHW, CELL)], dim=1)

    def resemblance(self, image_BCHW: Tensor) -> Tensor:
        """Normalized pixels BCHW -> BKyx, every patch's to every place, whatever its brightness and contrast."""
        values = self.filters[0].numel()
        mean_B1yx = F.avg_pool2d(image_BCHW.mean(1, keepdim=True), SIDE, STRIDE)
        square_B1yx = F.avg_pool2d(image_BCHW.square().mean(1, keepdim=True), SIDE, STRIDE)
        spread_B1yx = (square_B1yx - mean_B1yx.square()).clamp(min=0) * values / (values - 1) + EVEN**2
        flat = self.filters.sum((1, 2, 3))[:, None, None]
        seen_BKyx = F.conv2d(image_BCHW, self.filters, stride=STRIDE) - mean_B1yx * flat
        return seen_BKyx / spread_B1yx.sqrt() + self.bias[:, None, None]


def _quadrants(rows: int, columns: int, like: Tensor) -> Tensor:
    """A mask of each quadrant -> Qhw, scaled so that the mean of all cells is the quadrant's own."""
    down_h, across_w = (2 * torch.arange(count, device=like.device) // count for count in (rows, columns))
    place_hw = 2 * down_h[:, None] + across_w
    return QUADRANTS * F.one_hot(place_hw, QUADRANTS).permute(2, 0, 1).to(like.dtype)
