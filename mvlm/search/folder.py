"""An index on disk: a folder with the contrastive features of a corpus's images, and where each came from.

    vectors-00000.usearch   features of the first PART images in a usearch graph, fp32, keyed by the number of the image
                            (with --captions, combined with those of its captions)
    rows.arrow              shard, row in it, key and first caption of each image, in the same order
    index.json              the weights, the shards, and each vector file with its length and hash; written last

It is written beside its final path and renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from usearch.index import Index

from mvlm.errors import UserError
from mvlm.runtime import dist

Done = TypeVar("Done")

FORMAT, VERSION = "mvlm index", 1
INDEX, TABLE = "index.json", "rows.arrow"
TABLE_SCHEMA = pa.schema(
    [("shard", pa.string()), ("row", pa.int64()), ("key", pa.string()), ("caption", pa.string())],
)
PART = 1 << 18
"""Images per vector file, whose graph is in memory while it is built: 0.3 GB at a width of 256."""

METRIC, DTYPE = "ip", "f32"


@dataclass(frozen=True)
class VectorFile:
    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Indexed:
    """A folder of shards, as it was when indexed."""

    folder: str
    fingerprint: str  # of its manifest


@dataclass(frozen=True)
class Contents:
    """The content of index.json."""

    weights: str  # fingerprint
    step: int
    width: int
    rows: int
    shards: tuple[Indexed, ...]
    table: str  # SHA-256
    vectors: tuple[VectorFile, ...]

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"


def write_vectors(folder: Path, number: int, features: Iterable[np.ndarray], width: int) -> VectorFile:
    """Write vector file `number`, whose first image is number `number` * PART.

    Args:
        features: those of its images in order, each fp32 [any number, width].
    """
    index, rows = Index(ndim=width, metric=METRIC, dtype=DTYPE), 0
    for feature_BE in features:
        first = number * PART + rows
        index.add(np.arange(first, first + len(feature_BE)), feature_BE, threads=1)  # more make the graph vary
        rows += len(feature_BE)
    path = folder / f"vectors-{number:05d}.usearch"
    index.save(str(path))
    return VectorFile(path.name, rows, path.stat().st_size, hash_of(path))


@contextmanager
def new_index(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write an index to, which replaces `out` at the end of the block; called on every rank.

    Raises:
        UserError: `out` exists and is not an index, or cannot be written.
    """
    partial = out.parent / f".{out.name}.partial"
    dist.as_rank_0(mistakes_of(out, lambda: _begin(out, partial)))
    try:
        yield partial
    except UserError:
        if dist.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    dist.as_rank_0(mistakes_of(out, lambda: _replace(out, partial)))


def mistakes_of(out: Path, act: Callable[[], Done]) -> Callable[[], Done]:
    """`act`, raising a UserError if a file cannot be written."""

    def run() -> Done:
        try:
            return act()
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error}): make room, or give --out another place.") from None

    return run


def _begin(out: Path, partial: Path) -> None:
    if out.exists() and not (out / INDEX).is_file():
        raise UserError(f"{out} exists and is not an index: give --out a new name, or remove it.")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _replace(out: Path, partial: Path) -> None:
    old = out.parent / f".{out.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def read_contents(folder: Path) -> Contents:
    """The content of index.json.

    Raises:
        UserError: there is no index, or it is damaged; names the file.
    """
    path = folder / INDEX
    if not path.is_file():
        raise UserError(f"No index at {folder}: make one with `mvlm index SHARDS --checkpoint RUN --out {folder}`.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content.pop("format"), content.pop("version")) != (FORMAT, VERSION):
            raise ValueError("it was made by another version of mvlm")
        content["shards"] = tuple(Indexed(**shard) for shard in content["shards"])
        content["vectors"] = tuple(VectorFile(**file) for file in content["vectors"])
        contents = Contents(**content)
        if sum(file.rows for file in contents.vectors) != contents.rows:
            raise ValueError("its numbers of rows differ")
        return contents
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from None


def open_vectors(folder: Path, contents: Contents) -> list[Index]:
    """The vector files, memory-mapped; their hashes are checked first, since usearch does not detect damage.

    Raises:
        UserError: one is missing or is not what was written.
    """
    opened = []
    for file in contents.vectors:
        path = folder / file.file
        _check(path, file.sha256)
        try:
            part = Index.restore(str(path), view=True)
        except (RuntimeError, ValueError) as error:
            raise damaged(path, str(error)) from None
        if part is None or (len(part), part.ndim) != (file.rows, contents.width):
            raise damaged(path, "it holds other vectors")
        opened.append(part)
    return opened


def open_table(folder: Path, contents: Contents) -> pa.Table:
    """The table of rows, memory-mapped.

    Raises:
        UserError: it is missing or is not what was written.
    """
    path = folder / TABLE
    _check(path, contents.table)
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, str(error)) from None
    if not table.schema.equals(TABLE_SCHEMA) or len(table) != contents.rows:
        raise damaged(path, "it holds other rows")
    return table


def damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}): make the index again with `mvlm index`.")


def hash_of(path: Path) -> str:
    """SHA-256; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, sha256: str) -> None:
    try:
        found = hash_of(path)
    except OSError as error:
        raise damaged(path, str(error)) from None
    if found != sha256:
        raise damaged(path, "its SHA-256 is not that of the file written")
