"""The row index beside each shard, made from the shard alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from mvlm.data.shards.columns import ShardRows, index_of
from mvlm.data.shards.files import UNCOUNTED, Shard, Shards, index_file
from mvlm.data.shards.integrity import check_hash, check_index_hash, check_length
from mvlm.data.shards.mapped import MappedFile
from mvlm.data.shards.row_index import packed
from mvlm.data.shards.schema import CAPTION, MANIFEST, Manifest, read_manifest
from mvlm.errors import Mistakes, UserError
from mvlm.runtime.storage import write_durably

from .store.disk import ELSEWHERE, writing


def add_index(folder: Path, shard: Shard, task: str) -> Shard:
    """Write the row index of a shard in `folder`; return the shard with it.

    Raises:
        UserError: the shard is damaged.
    """
    path = folder / shard.file
    try:
        data = MappedFile(path).data
        index = index_of(data, task)
        rows = ShardRows(data, task, index)
        content = packed(index, len(data))
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy or shard it again.") from None
    write_durably(folder / index_file(shard.file), content)
    shard = replace(shard, index_bytes=len(content), index_sha256=hashlib.sha256(content).hexdigest())
    return replace(shard, captions=rows.captions()) if task == CAPTION else shard


def add_indexes(folder: Path, on_row: Callable[[int], None] = lambda image_bytes: None) -> int:
    """Write a row index beside each shard of `folder` that has no sound one; return how many were written.

    Neither the shards nor the fingerprint change. Indexes written before an error or an interruption are kept.

    Raises:
        UserError: shards have changed, or the folder was changed meanwhile or cannot be written; has a sentence for
            each shard. All other shards then have their index.
    """
    manifest, mistakes, written = read_manifest(folder), Mistakes(), 0
    shards = list(manifest.shards)
    with writing(folder, ELSEWHERE):
        try:
            for number, shard in enumerate(manifest.shards):
                with mistakes.gathered():
                    if not _has_sound_index(folder, shard, manifest.task):
                        check_length(folder, shard)
                        check_hash(folder, shard)
                        shards[number] = add_index(folder, shard, manifest.task)
                        written += 1
                for _ in range(shard.rows):
                    on_row(0)
        finally:
            _name_indexes(folder, manifest, Shards(shards))
    mistakes.settle()
    return written


def _name_indexes(folder: Path, manifest: Manifest, shards: Shards) -> None:
    if read_manifest(folder) != manifest:
        raise UserError(f"{folder} was changed meanwhile: run the same command again.")
    write_durably(folder / MANIFEST, replace(manifest, shards=shards).to_json())


def _has_sound_index(folder: Path, shard: Shard, task: str) -> bool:
    if task == CAPTION and shard.captions == UNCOUNTED:
        return False
    try:
        if shard.index:
            check_index_hash(folder, shard.index)
    except UserError:
        return False
    return shard.index is not None
