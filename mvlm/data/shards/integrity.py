"""Whether the files of a corpus are those that its manifest names: their lengths and their hashes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from blake3 import blake3

from mvlm.data.shards.files import BLAKE3, SHA256, Shard, index_again
from mvlm.errors import UserError, cannot_read

HASHES: dict[str, Callable[[], Any]] = {SHA256: hashlib.sha256, BLAKE3: blake3}
"""By their names in a manifest."""


def check_lengths(folder: str | Path, shards: Iterable[Shard]) -> None:
    """Raise `UserError` naming the first shard that is missing or was cut short, and the rows lost."""
    for shard in shards:
        check_length(folder, shard)


def check_length(folder: str | Path, shard: Shard) -> int:
    """Check a shard's length and return when its file was last written, in nanoseconds.

    Raises:
        UserError: it is missing or its length is not the manifest's; names it and the rows lost.
    """
    path = Path(folder) / shard.file
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {shard.rows} rows are lost; copy or shard it again.") from None
    except OSError as error:
        raise cannot_read(path, error, "copy or shard it again") from None
    if found.st_size != shard.bytes:
        raise UserError(
            f"{path} has {found.st_size} bytes and not {shard.bytes}: {shard.rows} rows are lost; "
            "copy or shard it again."
        )
    return found.st_mtime_ns


def check_index_length(folder: str | Path, index: Shard) -> None:
    """Raise `UserError` if a row index is missing or its length is not the manifest's."""
    path = Path(folder) / index.file
    size = path.stat().st_size if path.is_file() else None
    if size != index.bytes:
        found = "is missing" if size is None else f"has {size} bytes and not {index.bytes}"
        raise UserError(f"{path} {found}, without which no row is checked: {index_again(folder)}.")


def check_index_hash(folder: str | Path, index: Shard) -> None:
    """Raise `UserError` if the row index's bytes are not those that were written."""
    check_index_length(folder, index)
    path = Path(folder) / index.file
    if hashlib.sha256(path.read_bytes()).hexdigest() != index.hash:
        raise UserError(
            f"{path} has changed since it was written (its SHA-256 is not the manifest's): {index_again(folder)}."
        )


def has_its_hash(file: io.BufferedReader, shard: Shard) -> bool:
    """Whether an open file has the bytes of a shard, or of its row index."""
    return hashlib.file_digest(file, HASHES[shard.hashed_by]).hexdigest() == shard.hash


def check_hash(folder: str | Path, shard: Shard) -> None:
    """Raise `UserError` if the shard's bytes are not those that were written."""
    path = Path(folder) / shard.file
    with path.open("rb") as file:
        if not has_its_hash(file, shard):
            raise UserError(
                f"{path} has changed since it was written (its hash is not the manifest's): copy or shard it again."
            )
