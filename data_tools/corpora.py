"""Finding and reading finished corpora."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from mvlm.data.schema import MANIFEST, SCHEMA, Manifest, check_lengths, read_manifest
from mvlm.errors import UserError


def corpora(path: Path) -> list[Path]:
    """`path` itself, or the corpora of the splits right inside it.

    Raises:
        UserError: it is neither.
    """
    inside = sorted(manifest.parent for manifest in path.glob(f"*/{MANIFEST}"))
    if (path / MANIFEST).exists() or not inside:
        read_manifest(path)
        return [path]
    return inside


def open_shard(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Map a shard file; nothing but its footer is read.

    Raises:
        UserError: it is no Arrow file or has other columns than `SCHEMA`.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no readable Arrow file ({error}): copy or shard it again.") from None
    if reader.schema != SCHEMA:
        raise UserError(f"{path} has other columns than this version's shards: shard the corpus again.")
    return reader


def batches(folder: Path, manifest: Manifest) -> Iterator[pa.RecordBatch]:
    """The record batches of a corpus in order.

    Raises:
        UserError: a shard is missing, cut short or malformed.
    """
    check_lengths(folder, manifest)
    for shard in manifest.shards:
        reader = open_shard(folder / shard.file)
        for index in range(reader.num_record_batches):
            try:
                batch = reader.get_batch(index)
                batch.validate(full=True)
            except (pa.ArrowException, OSError) as error:
                raise UserError(
                    f"{folder / shard.file} is damaged in batch {index} ({error}): copy or shard it again."
                ) from None
            yield batch
