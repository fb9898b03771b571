"""Shards written with pyarrow alone, so that readers are tested against the format and not against our writer."""

import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from blake3 import blake3
from PIL import Image

from mvlm.data.shards.files import Shard, Shards
from mvlm.data.shards.schema import MANIFEST, SCHEMA, Manifest
from tests import pictures

WORDS = ["a", "the", "red", "green", "blue", "circle", "square", "near", "above", "on", "left", "right", "dog", "cat"]


def encoded(rng, width=40, height=30, kind="PNG"):
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return pictures.encoded(Image.fromarray(pixels), kind)


def make_rows(count, seed=0):
    """Rows with 1 to 3 captions each, of different lengths, in several scripts."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        captions = [
            " ".join(rng.choice(WORDS, rng.integers(1, 14))) + (" чёрный 猫" if number % 5 == 0 else "")
            for _ in range(rng.integers(1, 4))
        ]
        width, height = int(rng.integers(20, 60)), int(rng.integers(20, 60))
        image = encoded(rng, width, height, "JPEG" if number % 2 else "PNG")
        row = {"key": f"k{number:05d}", "image": image, "captions": captions, "source": "made" if number % 3 else ""}
        rows.append(row | {"width": width, "height": height, "crc32": zlib.crc32(image)})
    return rows


def write_shards(folder: Path, rows, shard_rows=50, batch_rows=16, schema=SCHEMA):
    folder.mkdir(parents=True)
    shards = []
    for start in range(0, len(rows), shard_rows):
        part = rows[start : start + shard_rows]
        path = folder / f"{len(shards):06d}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for at in range(0, len(part), batch_rows):
                writer.write_batch(pa.RecordBatch.from_pylist(part[at : at + batch_rows], schema=schema))
        content = path.read_bytes()
        shards.append(Shard(path.name, len(part), len(content), blake3(content).hexdigest()))
    captions, size = sum(len(row["captions"]) for row in rows), sum(len(row["image"]) for row in rows)
    (folder / MANIFEST).write_text(Manifest(len(rows), captions, size, Shards(shards)).to_json())
    return folder


def stacked(samples):
    """The images of samples as the loader hands them to `collate`."""
    return torch.from_numpy(np.stack([np.stack(sample.images) for sample in samples], axis=1))
