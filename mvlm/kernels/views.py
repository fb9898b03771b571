"""The whole and the masked view of a modality through its encoder: both in one pass, or each in its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from mvlm.kernels.dispatch import Implementation, Op


class Views(NamedTuple):
    """Which views of a modality are to be encoded."""

    whole: bool
    masked: bool


Encode = Callable[[Views], list[Tensor]]
"""Encodes the views asked for; in one pass if there are two."""


def joint(encode: Encode, views: Views) -> list[Tensor]:
    return encode(views)


def apart(encode: Encode, views: Views) -> list[Tensor]:
    each = Views(views.whole, False), Views(False, views.masked)
    return [features for view in each if any(view) for features in encode(view)]


VIEWS = Op(
    "views",
    Implementation("joint", joint),
    Implementation("apart", apart),
)
"""VIEWS(encode, views) -> features of the whole view, of the masked one, or of both in this order."""
