"""COCO captions as published: `captions_train2017.json` and its like, with the image folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from .annotated import Annotated, Annotation, At, Unfit, text, whole
from .captions import captions_of
from .json_stream import json_items


def coco(paths: list[Path], images: list[str]) -> Annotated:
    """captions_*.json files; --images: the folder of the images or of train2017/ and so on; key: the image's id.

    Only the captions are held in memory.
    """
    return Annotated(paths, images, _items, _entry, "coco")


def _items(file: BinaryIO) -> Iterator[Any]:
    """Each image with its captions, in the order of the images."""
    captions: dict[str, list[object]] = {}
    for annotation in json_items(file, "annotations.item"):
        if isinstance(annotation, dict):
            captions.setdefault(str(annotation.get("image_id")), []).append(annotation.get("caption"))
    file.seek(0)
    for image in json_items(file, "images.item"):
        yield image | {"captions": captions.pop(str(image.get("id")), [])} if isinstance(image, dict) else image
    yield from ({"id": image_id} for image_id in captions)


def _entry(item: Any, at: At) -> Annotation:
    """COCO's ids are integers; other files in its format have strings too, and may even mix the two for one id."""
    image_id = item["id"] if isinstance(item["id"], str) else whole(item["id"])
    if "captions" not in item:
        raise Unfit("captions of an image the file does not list")
    name = text(item["file_name"])
    folder = PurePosixPath(at.file).stem.rpartition("_")[2]
    fields = {"image_id": image_id, "file_name": name}
    return Annotation(str(image_id), (name, f"{folder}/{name}"), captions_of(item["captions"]), fields)
