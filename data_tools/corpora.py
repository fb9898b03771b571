"""Finding and reading finished corpora of any task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from glob import has_magic
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from mvlm.data.shards.bits import Bits
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.integrity import check_lengths
from mvlm.data.shards.location import open_location
from mvlm.data.shards.schema import MANIFEST, SCHEMAS, Manifest, corpora_in, parse_manifest, read_manifest
from mvlm.data.shards.selection import select
from mvlm.data.shards.takedown import TAKEDOWN
from mvlm.errors import UserError
from mvlm.runtime.storage import Storage

from .inputs import REMEDY, PathOrUrl, expanded, fetched_files


def corpora(path: Path) -> list[Path]:
    """`path` itself, or the corpora of the splits directly inside it.

    Raises:
        UserError: it is neither.
    """
    found = corpora_in(path) or [path]
    if found == [path]:
        read_manifest(path)
    return found


def corpus_places(texts: Sequence[str]) -> list[PathOrUrl]:
    """The corpora of several paths, URLs or patterns; a pattern stands for the folders that hold a manifest.

    Raises:
        UserError: one of them names no corpus.
    """
    return [corpus for text in texts for place in folders_with(MANIFEST, text) for corpus in _places(place)]


def folders_with(name: str, text: str) -> list[PathOrUrl]:
    """The place that a path or URL names, or those that match a pattern and hold a file of this name.

    Raises:
        UserError: nothing matches.
    """
    if not has_magic(text) or Path(text).exists():
        return expanded([text])
    found = expanded([f"{text.rstrip('/')}/{name}"])
    return [place.parent if isinstance(place, Path) else place.removesuffix(f"/{name}") for place in found]


def corpus_place(text: str) -> PathOrUrl:
    """The only corpus that a path, URL or pattern names.

    Raises:
        UserError: it names none, or several.
    """
    first, *others = corpus_places([text])
    if others:
        raise UserError(f"{text} names {len(others) + 1} corpora, one of which is {first}: name one, or merge them.")
    return first


def _places(place: PathOrUrl) -> Sequence[PathOrUrl]:
    if isinstance(place, Path):
        return corpora(place)
    url = place.rstrip("/")
    held = Storage(url, REMEDY).sizes()
    inside = sorted(name.partition("/")[0] for name in held if name.endswith(f"/{MANIFEST}") and name.count("/") == 1)
    return [f"{url}/{name}" for name in inside] if inside and MANIFEST not in held else [url]


def manifest_at(place: PathOrUrl) -> Manifest:
    """The manifest of a corpus; raises `UserError` if there is none."""
    if isinstance(place, Path):
        return read_manifest(place)
    content = Storage(place, REMEDY).read(MANIFEST)
    if content is None:
        raise UserError(f"{place} holds no {MANIFEST}: {REMEDY}.")
    return parse_manifest(content.decode("utf-8", "replace"), f"{place}/{MANIFEST}")


@contextmanager
def corpora_here(places: Iterable[PathOrUrl]) -> Iterator[list[Path]]:
    """The corpora as local folders; those at URLs are fetched for the duration of the block."""
    with ExitStack() as fetching:
        yield [fetching.enter_context(fetched_files(place, _files_of(place))) for place in places]


def _files_of(place: PathOrUrl) -> Iterator[str]:
    yield from (MANIFEST, TAKEDOWN)
    yield from (file.file for shard in manifest_at(place).shards for file in shard.files)


def open_shard(path: Path, task: str) -> pa.ipc.RecordBatchFileReader:
    """Map a shard file; nothing but its footer is read.

    Raises:
        UserError: it is not an Arrow file, or has other columns than the task's.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Arrow file ({error}): copy or shard it again.") from None
    if reader.schema != SCHEMAS[task]:
        raise UserError(f"{path} has different columns from this version's {task} shards: shard the corpus again.")
    return reader


def shard_batch(path: Path, reader: pa.ipc.RecordBatchFileReader, index: int) -> pa.RecordBatch:
    """One record batch, whose offsets and strings are valid and which has no nulls.

    Raises:
        UserError: it is damaged or has nulls.
    """
    try:
        batch = reader.get_batch(index)
        batch.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged in batch {index} ({error}): copy or shard it again.") from None
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count or (pa.types.is_list(column.type) and column.flatten().null_count):
            raise UserError(f"{path} holds nulls in column {name!r} of batch {index}: shard the corpus again.")
    return batch


def shard_batches(path: Path, task: str) -> Iterator[pa.RecordBatch]:
    """The record batches of one shard; raises as `open_shard` and `shard_batch`."""
    reader = open_shard(path, task)
    return (shard_batch(path, reader, index) for index in range(reader.num_record_batches))


def shard_rows(path: Path, task: str) -> Iterator[dict[str, Any]]:
    """The rows of one shard by column; raises as `shard_batches`."""
    for batch in shard_batches(path, task):
        yield from batch.to_pylist()


def kept_rows(folder: Path, where: str = "") -> Bits | None:
    """The rows of a corpus that were not taken down and meet a condition; None if that is all of them.

    Raises:
        UserError: the condition cannot be read or names a column that no shard has.
    """
    location = open_location(folder, Cache())
    gone = location.taken_down
    return select(location, where, without=gone).rows if where or gone else None


def batches(folder: Path, manifest: Manifest, kept: Bits | None = None) -> Iterator[pa.RecordBatch]:
    """The record batches of a corpus in order.

    Args:
        kept: the rows to yield; None = all.

    Raises:
        UserError: a shard is missing, cut short or malformed.
    """
    first = 0
    check_lengths(folder, manifest.shards)
    for shard in manifest.shards:
        for batch in shard_batches(folder / shard.file, manifest.task):
            first += len(batch)
            yield batch.filter(pa.array(kept.between(first - len(batch), first))) if kept else batch


def rows_at(folder: Path, manifest: Manifest, chosen: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows with these ascending numbers, by column; shards without any are not opened.

    Raises:
        UserError: a shard is missing, cut short or malformed.
    """
    check_lengths(folder, manifest.shards)
    starts = list(accumulate((shard.rows for shard in manifest.shards), initial=0))
    for shard, first, end in zip(manifest.shards, starts, starts[1:], strict=False):
        wanted = [number - first for number in chosen if first <= number < end]
        if not wanted:
            continue
        start = 0
        for batch in shard_batches(folder / shard.file, manifest.task):
            for number in wanted:
                if start <= number < start + len(batch):
                    yield batch.slice(number - start, 1).to_pylist()[0]
            start += len(batch)


def spread(total: int, count: int) -> list[int]:
    """`count` evenly spaced numbers below `total`, or all of them if there are fewer."""
    count = min(total, count)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]
