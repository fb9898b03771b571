"""A corpus of photograph-like JPEGs, generated from seeds: 500 x 375 pixels, quality 90, about 49 kB."""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (500, 375)
DETAIL = ((6, 80), (24, 40), (96, 22))  # columns of a grid of random colours, and their standard deviation
GRAIN = 2.2  # grey levels of noise per pixel, which determine the size of the JPEG


def photo(seed: int, size: tuple[int, int] = SIZE, quality: int = 90) -> bytes:
    """An encoded image with structure at several scales, as photographs have."""
    random = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), 128, np.float32)
    for columns, spread in DETAIL:
        grid = random.normal(0, spread, (columns * 3 // 4, columns, 3)).astype(np.float32)
        layers = [np.asarray(Image.fromarray(grid[:, :, c]).resize(size, Image.Resampling.BICUBIC)) for c in range(3)]
        pixels += np.stack(layers, 2)
    pixels += random.normal(0, GRAIN, (size[1], size[0], 1))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_folder(folder: Path, images: list[bytes], count: int) -> None:
    """Write a source folder of `count` records, whose images are `images` over and over, each in its own file."""
    (folder / "images").mkdir(parents=True)
    with (folder / "captions.jsonl").open("w") as lines:
        for number in range(count):
            name = f"images/{number:06d}.jpg"
            (folder / name).write_bytes(images[number % len(images)])
            lines.write(json.dumps({"id": f"{number:06d}", "image": name, "captions": captions(number)}) + "\n")


def captions(number: int) -> list[str]:
    """Three captions, as long as COCO's."""
    return [f"photograph {number} of nothing at all, caption {n}, of a usual length" for n in range(3)]


def in_memory() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder on the RAM disk, or on any other where there is none."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
