"""Several corpora as one, in the order they are named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mvlm.data.shards.files import Shard, Shards
from mvlm.data.shards.integrity import check_hash
from mvlm.data.shards.schema import MANIFEST, Manifest, read_manifest
from mvlm.errors import UserError
from mvlm.runtime.files import link_or_copy
from mvlm.runtime.storage import write_durably

from ..corpora import batches, kept_rows
from ..join import SUMS
from ..row_index import add_index
from ..store.destination import staged
from .resplit import checked_rows, write_rows


def merge(
    folders: Sequence[Path],
    out: Path | str,
    shard_bytes: int,
    prefixes: Sequence[str] = (),
    on_row: Callable[[int], None] = lambda image_bytes: None,
) -> int:
    """Make the new corpus `out` from the rows of `folders`; return their number.

    No row is rewritten: the shards are hard links to the same files, or copies if `out` is on another disk. With
    `prefixes`, one per folder, each key follows its corpus's prefix, and all rows are rewritten; so they are if rows
    were taken down. Eight bytes per row are held.

    Raises:
        UserError: the corpora are of different tasks, share a key, or are damaged, or `out` cannot be written.
    """
    task = _one_task(folders)
    _refuse_repeats(folders, prefixes or [""] * len(folders))
    with staged(out) as partial:
        if not prefixes and all(kept_rows(folder) is None for folder in folders):
            return _linked(folders, partial, task, on_row)
        rows = _prefixed(folders, prefixes or [""] * len(folders), on_row)
        written = write_rows(rows, partial, [""], task, shard_bytes)[""]
        if not written:
            raise UserError(f"{out} was not made, because all rows were taken down: name corpora that have others.")
        return written


def _prefixed(
    folders: Sequence[Path], prefixes: Sequence[str], on_row: Callable[[int], None]
) -> Iterator[tuple[dict[str, object], str]]:
    for folder, prefix in zip(folders, prefixes, strict=True):
        for row in checked_rows(folder):
            on_row(len(row["image"]))
            yield row | {"key": prefix + row["key"]}, ""


def _linked(folders: Sequence[Path], out: Path, task: str, on_row: Callable[[int], None]) -> int:
    merged: list[Shard] = []
    manifests = [read_manifest(folder) for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        for shard in manifest.shards:
            named = replace(shard, file=f"{len(merged):06d}.arrow")
            for old, new in zip(shard.files, named.files, strict=True):
                check_hash(folder, old)
                link_or_copy(folder / old.file, out / new.file)
            merged.append(named if shard.index else add_index(out, named, task))
            for _ in range(shard.rows):
                on_row(0)
    rows, captions, image_bytes = (sum(getattr(manifest, sums) for manifest in manifests) for sums in SUMS)
    write_durably(out / MANIFEST, Manifest(rows, captions, image_bytes, Shards(merged), task).to_json())
    return rows


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
    """Before anything is copied, compare hashes, and the keys themselves only if two hashes are equal."""
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
