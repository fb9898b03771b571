"""NLVR2: the JSON lines as published (`train.json`, `dev.json`, `test1.json`), with images; one row per sentence."""

from __future__ import annotations

from pathlib import Path

from .annotated import Annotated, Annotation, At, json_object, located_lines, text

LABELS = {"True": True, "False": False, True: True, False: False}


def nlvr2(paths: list[Path], images: list[str]) -> Annotated:
    """train.json, dev.json, test1.json, ...; --images: the folder of the images, or of train/, dev/ and so on; key: the
    identifier; group: the sentence over its pairs of images, for consistency"""
    return Annotated(paths, images, located_lines, _entry, "nlvr2", seekable=True)


def _entry(line: bytes, at: At) -> Annotation:
    item = json_object(line)
    identifier = text(item["identifier"])
    split, pair_set, pair, sentence = identifier.split("-")
    folders = [split, "", f"images/{split}"]
    if "directory" in item:  # the images of the training set lie in numbered folders
        directory = str(item["directory"])
        folders = [f"{split}/{directory}", directory, f"images/{split}/{directory}", *folders]
    left, right = (
        [f"{folder}/{split}-{pair_set}-{pair}-img{side}.png".lstrip("/") for folder in folders] for side in (0, 1)
    )
    columns = {
        "sentence": text(item["sentence"]),
        "label": LABELS[item["label"]],
        "group": f"{split}-{pair_set}-{sentence}",
    }
    return Annotation(identifier, left, fields={"split": split}, right=right, columns=columns)
