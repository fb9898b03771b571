"""Whether a corpus is still what was written: lengths, hashes, columns, checksums, texts, and that images decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from zlib_ng import zlib_ng

from mvlm.data.images.encoded import BadImage, ChangedImage
from mvlm.data.shards.columns import ShardRows
from mvlm.data.shards.files import Shard, index_again
from mvlm.data.shards.in_place import image_bytes, resolved
from mvlm.data.shards.integrity import check_hash, check_index_hash, check_length, has_its_hash
from mvlm.data.shards.mapped import MappedFile
from mvlm.data.shards.plain_rows import CHANGED
from mvlm.data.shards.row_index import unpacked
from mvlm.data.shards.schema import IMAGE_COLUMNS, LABELS, Manifest, read_manifest
from mvlm.errors import UserError

from ..corpora import open_shard, shard_batch, spread
from ..engines.local import ordered_map
from ..filters import MAY_BE_EMPTY
from ..image import decoded_size

EMPTY = MAY_BE_EMPTY | {"source"}


@dataclass(frozen=True)
class _Stored:
    """A row as it is stored in a shard."""

    where: str
    columns: dict[str, Any]
    decode: bool  # whether it is in the sample whose images are decoded
    changed: bool  # whether its texts do not match the row index

    def __str__(self) -> str:
        return self.where

    @property
    def image_bytes(self) -> int:
        return sum(image_bytes(value) for value in self.columns.values() if isinstance(value, bytes))


def problems(
    folder: Path,
    workers: int,
    on_row: Callable[[int], None] = lambda image_bytes: None,
    images: int | None = None,
) -> Iterator[str]:
    """Yield one sentence for each thing wrong with the corpus in `folder`; nothing if it is sound.

    All images are decoded, or `images` of them, evenly spread; everything else is checked in every row.

    Raises:
        UserError: there is no valid manifest to compare with.
    """
    manifest = read_manifest(folder)
    decoded = None if images is None else frozenset(spread(manifest.rows, images))
    named = {file.file for shard in manifest.shards for file in shard.files}
    found = {path.name for pattern in ("*.arrow", "*.index", "*.parquet") for path in folder.glob(pattern)}
    for stray in sorted(found - named):
        yield f"{folder / stray} is not named in the manifest."
    seen: set[str] = set()
    totals = {"rows": 0, "captions": 0, "image_bytes": 0}
    sound, first = True, 0
    for shard in manifest.shards:
        check = _ShardCheck(folder / shard.file, shard, manifest.task, first, decoded)
        for row, problem in check.rows(workers, seen):
            if problem:
                sound = False
                yield problem
            if row:
                totals["rows"] += 1
                totals["captions"] += len(row.columns.get("captions", ()))
                totals["image_bytes"] += row.image_bytes
                on_row(row.image_bytes)
        first += shard.rows
    if sound:
        yield from _compare_totals(folder, manifest, totals)


def _compare_totals(folder: Path, manifest: Manifest, totals: dict[str, int]) -> Iterator[str]:
    for name, found in totals.items():
        if found != (stated := getattr(manifest, name)):
            yield f"{folder} holds {found} {name.replace('_', ' ')} where its manifest says {stated}."


@dataclass(frozen=True)
class _ShardCheck:
    path: Path
    shard: Shard
    task: str
    first: int  # rows before this shard
    decoded: frozenset[int] | None  # rows of the corpus whose images are decoded; None: all

    def rows(self, workers: int, seen: set[str]) -> Iterator[tuple[_Stored | None, str]]:
        """Each row, or None, with what is wrong with it or with the shard; "" if nothing."""
        path, shard = self.path, self.shard
        lost = f"{shard.rows} rows are lost, {self.first} to {self.first + shard.rows - 1} of the corpus"
        if not path.is_file():
            yield None, f"{path} is missing: its {lost}."
            return
        if (size := path.stat().st_size) != shard.bytes:
            yield None, f"{path} has {size} bytes and not {shard.bytes}: its {lost}."
            return
        with path.open("rb") as file:
            if not has_its_hash(file, shard):
                yield None, f"{path} has changed since it was written: its hash is not the manifest's."
        for table in shard.files[len(shard.trained_on) :]:
            try:
                check_length(path.parent, table)
                check_hash(path.parent, table)
            except UserError as error:
                yield None, str(error)
        try:
            reader = open_shard(path, self.task)
        except UserError as error:
            yield None, str(error)
            return
        try:
            indexed = self._indexed()
        except UserError as error:
            indexed = None
            yield None, str(error)
        try:
            rows = 0
            for row, problem in ordered_map(
                _row_problem, self._stored(reader, indexed), lambda row: row.image_bytes, workers
            ):
                rows += 1
                key = row.columns["key"]
                repeated = f"{row.where} repeats the key {key!r}." if key in seen else ""
                seen.add(key)
                yield row, problem or repeated
        except UserError as error:
            yield None, str(error)
            return
        if rows != shard.rows:
            yield None, f"{path} holds {rows} rows where the manifest says {shard.rows}."

    def _indexed(self) -> ShardRows | None:
        """The rows by their index, if there is one; raises `UserError` if it is damaged."""
        if self.shard.index is None:
            return None
        check_index_hash(self.path.parent, self.shard.index)
        file = self.path.parent / self.shard.index.file
        try:
            index = unpacked(MappedFile(file).data, self.shard.bytes, self.shard.rows)
            return ShardRows(MappedFile(self.path).data, self.task, index)
        except ValueError as error:
            raise UserError(f"{file} cannot be used ({error}): {index_again(self.path.parent)}.") from None

    def _stored(self, reader: pa.ipc.RecordBatchFileReader, indexed: ShardRows | None) -> Iterator[_Stored]:
        number = 0
        for batch in range(reader.num_record_batches):
            try:
                rows = shard_batch(self.path, reader, batch).to_pylist()
            except (UserError, ValueError) as error:
                raise UserError(f"{self.path} is damaged from row {number} on: {error}") from None
            for row in rows:
                decode = self.decoded is None or self.first + number in self.decoded
                changed = indexed is not None and not indexed.is_sound(number)
                yield _Stored(f"{self.path} row {number} ({row['key']})", row, decode, changed)
                number += 1


def _row_problem(row: _Stored) -> str:
    texts = CHANGED if row.changed else next(_text_problems(row.columns), "")
    problem = next(_image_problems(row), "") or texts
    return f"{row.where}: {problem}." if problem else ""


def _image_problems(row: _Stored) -> Iterator[str]:
    for name in filter(row.columns.__contains__, IMAGE_COLUMNS):
        width, height, crc32 = (row.columns[about] for about in IMAGE_COLUMNS[name])
        try:
            image = resolved(row.columns[name])
        except ChangedImage:
            yield f"the reference to the {name} has changed"
            continue
        if zlib_ng.crc32(image) != crc32:
            yield f"the {name}'s bytes have changed; its CRC-32 is not the stored one"
        if row.decode:
            try:
                size = decoded_size(bytes(image))
            except BadImage as bad:
                yield f"{name}: {bad}"
                continue
            if size != (width, height):
                yield f"the {name} is {size[0]} x {size[1]}, not {width} x {height}"


def _text_problems(columns: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a row's texts: no text or list may be empty, and a label must be one of `LABELS`."""
    for name, value in columns.items():
        if isinstance(value, str | list) and not value and name not in EMPTY:
            yield f"there is no {name.removesuffix('s')}"
    label = columns.get("label")
    if isinstance(label, str) and label not in LABELS:
        yield f"its label is {label!r}, not one of {', '.join(LABELS)}"
