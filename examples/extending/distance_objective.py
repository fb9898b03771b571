"""An objective: pulls an image and its sentence together (the alignment of Wang and Isola 2020, arXiv 2005.10242)."""

from __future__ import annotations

from torch import Tensor

from mvlm.batch import Encoded


def distance_loss(own: Encoded) -> Tensor:
    """Mean squared distance of each pair's two features, which are of unit length; 0 to 4."""
    return (own.image_BE - own.text_BE).square().sum(-1).mean()
