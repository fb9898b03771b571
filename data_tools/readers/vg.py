"""Visual Genome: `region_descriptions.json`; the phrases of an image's regions are its captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_tools.readers.annotated import Annotated, Annotation, At, whole
from data_tools.readers.json_stream import json_items

FOLDERS = ("VG_100K", "VG_100K_2")


def vg(paths: list[Path], images: list[str]) -> Annotated:
    """region_descriptions.json; --images: the folder that holds VG_100K and VG_100K_2, or these two; key: the image's
    id; captions: the regions' phrases"""
    return Annotated(paths, images, _items, _entry, "vg")


def _items(file: BinaryIO) -> Iterator[Any]:
    return json_items(file, "item")


def _entry(item: Any, at: At) -> Annotation:
    image_id = whole(item["id"])
    name = f"{image_id}.jpg"
    phrases = [region["phrase"] for region in item["regions"]]
    return Annotation(
        str(image_id), (name, *(f"{folder}/{name}" for folder in FOLDERS)), phrases, {"image_id": image_id}
    )
