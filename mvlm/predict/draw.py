"""Labelled tiles, side by side."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 224
LABEL = 24
GAP = 6
COLUMNS = 6
RED = (255, 0, 0)
STRENGTH = 0.65
"""Opacity of the red where a word attends most."""


def tile(picture: Image.Image, label: str) -> Image.Image:
    """A square of SIDE pixels, as the model sees the picture, over its label."""
    drawn = Image.new("RGB", (SIDE, SIDE + LABEL), "white")
    resample = Image.Resampling.NEAREST if picture.width < SIDE else Image.Resampling.BICUBIC
    drawn.paste(picture.resize((SIDE, SIDE), resample))
    ImageDraw.Draw(drawn).text((4, SIDE + 3), label, fill="black", font=ImageFont.load_default(15))
    return drawn


def heat_tile(picture: Image.Image, label: str, share: Tensor) -> Image.Image:
    """The picture in grey, redder where `share` (rows x columns) is greater; all red if it is equal everywhere."""
    grey = (share / share.max().clamp(min=1e-12) * 255).round().byte().numpy()
    mask = Image.fromarray(grey).resize(picture.size, Image.Resampling.BICUBIC)
    mask = mask.point([round(level * STRENGTH) for level in range(256)])
    return tile(Image.composite(Image.new("RGB", picture.size, RED), picture.convert("L").convert("RGB"), mask), label)


def strip(tiles: list[Image.Image]) -> Image.Image:
    """All tiles, in rows of COLUMNS."""
    width, height = tiles[0].size
    columns, rows = min(COLUMNS, len(tiles)), -(-len(tiles) // COLUMNS)
    whole = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for number, each in enumerate(tiles):
        whole.paste(each, (number % COLUMNS * (width + GAP), number // COLUMNS * (height + GAP)))
    return whole
