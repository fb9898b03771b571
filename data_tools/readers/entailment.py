"""SNLI-VE: the JSON lines as published (`snli_ve_train.jsonl`), with Flickr30k's images; one row per hypothesis."""

from __future__ import annotations

from pathlib import Path

from mvlm.data.shards.schema import LABELS

from .annotated import Annotated, Annotation, At, Unfit, json_object, located_lines, text


def entailment(paths: list[Path], images: list[str]) -> Annotated:
    """snli_ve_*.jsonl; --images: Flickr30k's image folder; key: the pair's id"""
    return Annotated(paths, images, located_lines, _entry, "snli-ve", seekable=True)


def _entry(line: bytes, at: At) -> Annotation:
    item = json_object(line)
    label = text(item["gold_label"])
    if label not in LABELS:
        raise Unfit("no gold label")
    name = f"{text(item['Flickr30K_ID'])}.jpg"
    columns = {"sentence": text(item["sentence2"]), "label": label}
    places = (name, f"flickr30k-images/{name}")
    return Annotation(text(item["pairID"]), places, fields={"flickr30k_id": name.removesuffix(".jpg")}, columns=columns)
