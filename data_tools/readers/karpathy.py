"""Karpathy's splits: `dataset_coco.json`, `dataset_flickr30k.json`, `dataset_flickr8k.json`, with the image folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from mvlm.errors import UserError

from .annotated import Annotated, Annotation, At, text
from .json_stream import json_items

SUBSETS = ("train", "restval", "val", "test")


def karpathy(paths: list[Path], images: list[str], subset: str = ",".join(SUBSETS)) -> Annotated:
    """dataset_*.json files; --images: the image folder (of COCO: of train2014/ and val2014/); --subset: any of
    train,restval,val,test (people train on train,restval); key: COCO's image id or the file name's stem."""
    chosen = set(subset.split(","))
    if unknown := chosen - set(SUBSETS):
        raise UserError(f"--subset has {min(unknown)!r}: give any of {','.join(SUBSETS)}.")
    source = paths[0].stem.removeprefix("dataset_") if len(paths) == 1 else "karpathy"

    def entry(item: Any, at: At) -> Annotation | None:
        split = text(item["split"])
        if split in SUBSETS and split not in chosen:
            return None
        name = text(item["filename"])
        key = str(item["cocoid"]) if "cocoid" in item else PurePosixPath(name).stem
        captions = [sentence["raw"] for sentence in item["sentences"]]
        places = (f"{item['filepath']}/{name}", name) if "filepath" in item else (name,)
        return Annotation(key, places, captions, {"split": split, "filename": name, "imgid": item.get("imgid")})

    return Annotated(paths, images, _items, entry, source)


def _items(file: BinaryIO) -> Iterator[Any]:
    return json_items(file, "images.item")
