"""Small corpora, written without the code under test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from data_tools.__main__ import main
from tests.pictures import encoded

Corpus = list[dict[str, Any]]


def photo(seed: int, kind: str = "JPEG", size: tuple[int, int] = (24, 18)) -> bytes:
    """An encoded image of noise; `size` is its width and height in pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind)


def write_folder(folder: Path, count: int, **fields: Callable[[int], Any]) -> Corpus:
    """Write a sound source folder of `count` records and return them; `fields` take a record's number."""
    (folder / "images").mkdir(parents=True)
    records = []
    for number in range(count):
        (folder / f"images/{number}.jpg").write_bytes(photo(number, size=(24 + number, 18)))
        record = {"id": f"r{number}", "image": f"images/{number}.jpg", "captions": [f"noise {number}", "grey noise"]}
        records.append(record | {"source": "made"} | {name: make(number) for name, make in fields.items()})
    write_captions(folder, records)
    return records


def write_captions(folder: Path, records: Corpus) -> None:
    (folder / "captions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def read_rows(folder: Path) -> Corpus:
    """All rows of a corpus in the order of its manifest, read by pyarrow alone."""
    manifest = json.loads((folder / "manifest.json").read_text())
    tables = [pa.ipc.open_file(folder / shard["file"]).read_all() for shard in manifest["shards"]]
    return pa.concat_tables(tables).to_pylist()


def tree(folder: Path) -> dict[str, bytes]:
    """The content of every file below `folder`, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def quarantine(out: Path) -> dict[str, str]:
    """The reasons why records were dropped, by key."""
    lines = (out / "quarantine.jsonl").read_text().splitlines()
    return {entry["key"]: entry["reason"] for entry in map(json.loads, lines)}


def run(*argv: Any) -> None:
    """Run a command that must succeed."""
    assert main([str(argument) for argument in argv]) == 0


def sharded(source: Path, *options: object) -> dict[str, dict]:
    """Shard a source folder into a new folder beside it; return its rows by key, and as "" the quarantine."""
    out = source.with_name(f"out{len(list(source.parent.glob('out*')))}")
    run("shard", "folder", source, "--out", out, "--workers", 1, *options)
    return {row["key"]: row for row in read_rows(out)} | {"": quarantine(out)}
