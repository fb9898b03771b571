"""Corpora written by pyarrow alone, so that readers of shards are tested against the format, not against our writer."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
from blake3 import blake3
from made import photo

from mvlm.data.shards.files import Shard, Shards
from mvlm.data.shards.schema import MANIFEST, SCHEMAS, Manifest


def caption_rows(count: int, prefix: str = "k", **changes: Any) -> list[dict[str, Any]]:
    """Rows of the caption task with images of noise, 40 pixels wide and 30 high; `changes` replace columns."""
    images = [photo(number, size=(40, 30)) for number in range(count)]
    return [
        {"key": f"{prefix}{number}", "image": image, "captions": [f"noise {number}"], "source": "made"}
        | {"width": 40, "height": 30, "crc32": zlib.crc32(image)}
        | changes
        for number, image in enumerate(images)
    ]


def write_corpus(folder: Path, rows: list[dict[str, Any]], task: str = "caption", shard_rows: int = 5) -> Path:
    """Write `rows` as shards of `shard_rows` rows in two batches each; return `folder`."""
    folder.mkdir(parents=True)
    shards = []
    for start in range(0, len(rows), shard_rows):
        part = rows[start : start + shard_rows]
        path = folder / f"{len(shards):06d}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMAS[task]) as writer:
            for batch in (part[:3], part[3:]):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=SCHEMAS[task]))
        content = path.read_bytes()
        shards.append(Shard(path.name, len(part), len(content), blake3(content).hexdigest()))
    captions = sum(len(row.get("captions", ())) for row in rows)
    size = sum(len(row["image"]) + len(row.get("image2", b"")) for row in rows)
    (folder / MANIFEST).write_text(Manifest(len(rows), captions, size, Shards(shards), task).to_json())
    return folder
