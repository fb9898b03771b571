"""Visual Genome: `region_descriptions.json`; phrases of an image's regions are its captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .annotated import Annotated, Annotation, At, whole
from .json_stream import json_items

FOLDERS = ("VG_100K", "VG_100K_2")

MIN_WORDS = 5
"""Fewest words of a phrase that is kept; the mean of all phrases is five."""

PHRASES = 8
"""Phrases kept per image; ALBEF keeps 769 k of 100 k images."""


def vg(paths: list[Path], images: list[str], phrases: int = PHRASES) -> Annotated:
    """region_descriptions.json; --images: the folder that holds VG_100K and VG_100K_2, or these two; --phrases: how
    many to keep per image (default: 8), each once, of five words or more, those of the largest regions; 0: all as
    they are; key: the image's id; captions: the phrases, that of the largest region first"""

    def entry(item: Any, at: At) -> Annotation:
        captions = largest(item["regions"], phrases) if phrases else [region["phrase"] for region in item["regions"]]
        image_id = whole(item["id"])
        return Annotation(str(image_id), places(image_id), captions, {"image_id": image_id})

    return Annotated(paths, images, _items, entry, "vg")


def places(image_id: int) -> tuple[str, ...]:
    """Where an image may lie."""
    name = f"{image_id}.jpg"
    return (name, *(f"{folder}/{name}" for folder in FOLDERS))


def largest(regions: Sequence[Any], count: int) -> list[Any]:
    """The phrases of the largest regions that have `MIN_WORDS`, each once in whatever case; ties as in the file."""
    kept: dict[str, Any] = {}
    for region in sorted(regions, key=lambda region: -region["width"] * region["height"]):
        words = str(region["phrase"]).lower().split()
        if len(words) >= MIN_WORDS:
            kept.setdefault(" ".join(words), region["phrase"])
    return list(kept.values())[:count]


def _items(file: BinaryIO) -> Iterator[Any]:
    return json_items(file, "item")
