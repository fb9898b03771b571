"""Whether a corpus is still what was written: lengths, hashes, columns, checksums, and every image decodes."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_tools.check import BadImage, decoded_size
from data_tools.corpora import open_shard
from data_tools.engines.local import ordered_map
from mvlm.data.schema import Manifest, Shard, read_manifest
from mvlm.errors import UserError


@dataclass(frozen=True)
class _Stored:
    """A row as it lies in a shard."""

    where: str
    key: str
    image: bytes
    captions: int
    width: int
    height: int
    crc32: int

    def __str__(self) -> str:
        return self.where


def problems(folder: Path, workers: int, on_row: Callable[[int], None] = lambda image_bytes: None) -> Iterator[str]:
    """Yield one sentence for each thing wrong with the corpus in `folder`; nothing if it is sound.

    Raises:
        UserError: there is no valid manifest to compare with.
    """
    manifest = read_manifest(folder)
    named = {shard.file for shard in manifest.shards}
    for stray in sorted({path.name for path in folder.glob("*.arrow")} - named):
        yield f"{folder / stray} is not named in the manifest."
    seen: set[str] = set()
    totals = {"rows": 0, "captions": 0, "image_bytes": 0}
    sound = True
    for shard in manifest.shards:
        for row, problem in _check_shard(folder / shard.file, shard, workers, seen):
            if problem:
                sound = False
                yield problem
            if row:
                totals["rows"] += 1
                totals["captions"] += row.captions
                totals["image_bytes"] += len(row.image)
                on_row(len(row.image))
    if sound:
        yield from _compare_totals(folder, manifest, totals)


def _compare_totals(folder: Path, manifest: Manifest, totals: dict[str, int]) -> Iterator[str]:
    for name, found in totals.items():
        if found != (stated := getattr(manifest, name)):
            yield f"{folder} holds {found} {name.replace('_', ' ')} where its manifest says {stated}."


def _check_shard(path: Path, shard: Shard, workers: int, seen: set[str]) -> Iterator[tuple[_Stored | None, str]]:
    if not path.is_file():
        yield None, f"{path} is missing: {shard.rows} rows are lost."
        return
    if (size := path.stat().st_size) != shard.bytes:
        yield None, f"{path} has {size} bytes and not {shard.bytes}: its {shard.rows} rows are lost."
        return
    if _sha256(path) != shard.sha256:
        yield None, f"{path} has changed since it was written: its SHA-256 is not the manifest's."
    try:
        rows = 0
        for row, problem in ordered_map(_row_problem, _stored_rows(path), workers, lambda row: len(row.image)):
            rows += 1
            repeated = f"{row.where} repeats the key {row.key!r}." if row.key in seen else ""
            seen.add(row.key)
            yield row, problem or repeated
    except UserError as error:
        yield None, str(error)
        return
    if rows != shard.rows:
        yield None, f"{path} holds {rows} rows where the manifest says {shard.rows}."


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stored_rows(path: Path) -> Iterator[_Stored]:
    reader = open_shard(path)
    number = 0
    for index in range(reader.num_record_batches):
        try:
            batch = reader.get_batch(index)
            batch.validate(full=True)
            counts = [len(captions) for captions in batch["captions"].to_pylist()]
            columns = [batch[name].to_pylist() for name in ("key", "image", "width", "height", "crc32")]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{path} is damaged in batch {index}, from row {number} on ({error}).") from None
        for captions, (key, image, width, height, crc32) in zip(counts, zip(*columns, strict=True), strict=True):
            yield _Stored(f"{path} row {number} ({key})", key, image, captions, width, height, crc32)
            number += 1


def _row_problem(row: _Stored) -> str:
    if zlib.crc32(row.image) != row.crc32:
        return f"{row.where}: the image's bytes have changed; its CRC-32 is not the stored one."
    try:
        size = decoded_size(row.image)
    except BadImage as bad:
        return f"{row.where}: {bad}."
    if size != (row.width, row.height):
        return f"{row.where}: the image is {size[0]} x {size[1]}, not {row.width} x {row.height}."
    return "" if row.captions else f"{row.where}: there is no caption."
