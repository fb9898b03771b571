"""Several corpora as one, in the order they are named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mvlm.data.shards.schema import read_manifest
from mvlm.errors import UserError

from ..corpora import batches, kept_rows
from ..store.destination import staged
from .resplit import checked_rows, write_rows


def merge(
    folders: Sequence[Path],
    out: Path,
    shard_bytes: int,
    prefixes: Sequence[str],
    on_row: Callable[[int], None] = lambda image_bytes: None,
) -> int:
    """Write the rows of `folders` to the new corpus `out`, each key behind its corpus's prefix; return their number.

    Eight bytes a row are held, and one batch of rows.

    Raises:
        UserError: the corpora are of different tasks, share a key, or are damaged, or `out` cannot be written.
    """
    task = _one_task(folders)
    _refuse_repeats(folders, prefixes)

    def rows() -> Iterator[tuple[dict[str, object], str]]:
        for folder, prefix in zip(folders, prefixes, strict=True):
            for row in checked_rows(folder):
                on_row(len(row["image"]))
                yield row | {"key": prefix + row["key"]}, ""

    with staged(out) as partial:
        return write_rows(rows(), partial, [""], task, shard_bytes)[""]


def _one_task(folders: Sequence[Path]) -> str:
    tasks = {read_manifest(folder).task: folder for folder in folders}
    if len(tasks) > 1:
        found = ", ".join(f"{folder} ({task})" for task, folder in tasks.items())
        raise UserError(f"Corpora of different tasks cannot be merged: {found}; name those of one task.")
    return next(iter(tasks))


def _keys(folders: Sequence[Path], prefixes: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for folder, prefix in zip(folders, prefixes, strict=True):
        for batch in batches(folder, read_manifest(folder), kept_rows(folder)):
            yield from ((prefix + key, folder) for key in batch["key"].to_pylist())


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def _refuse_repeats(folders: Sequence[Path], prefixes: Sequence[str]) -> None:
    """Before anything is copied: hashes first, and the keys themselves only where two hashes are equal."""
    hashes = np.fromiter((_hash(key) for key, _ in _keys(folders, prefixes)), dtype=np.uint64)
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: dict[str, Path] = {}
    for key, folder in _keys(folders, prefixes) if suspects else ():
        if key in seen:
            raise UserError(
                f"{seen[key]} and {folder} both hold the key {key!r}: "
                "give --prefix-keys, or leave out one of the corpora if they are the same images."
            )
        if _hash(key) in suspects:
            seen[key] = folder
