"""Whether an epoch notices every flipped bit in its rows, and trains on no damaged row.

    python benchmarks/data/flips.py

Bits are flipped at random places in a corpus's shards, and pyarrow, not our reader, says which rows each is part of.
Then the shards' pages are dropped from the system's cache, and whole epochs are loaded as in training, of images and of
pairs: every damaged row must be reported, and every sample must be the one that the undamaged corpus has at its
position, or replace a damaged row and come from a sound one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.data.corpus import captions, photo  # noqa: E402
from benchmarks.data.formats import write_mvlm  # noqa: E402
from mvlm.config.schema import Data, Objectives  # noqa: E402
from mvlm.data.loading.loader import Loader  # noqa: E402
from mvlm.data.loading.sampler import make_sampler, order_of  # noqa: E402
from mvlm.data.samples.pairs import PairDataset  # noqa: E402
from mvlm.data.shards.mixture import Mixture  # noqa: E402

RESULT = Path(__file__).parent / "results" / "flips.json"
SHARD_BYTES = 16_000_000
SIDE, BATCH = 64, 50

Range = tuple[int, int, tuple[int, ...]]
"""The first byte in a shard, the one after the last, and the rows of the corpus that these bytes are part of."""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--count", type=int, default=4000, help="rows (default: 4000)")
    words.add_argument("--flips", type=int, default=1000, help="bits that flip (default: 1000)")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    arguments = words.parse_args()
    with tempfile.TemporaryDirectory() as scratch:  # on a disk: a RAM disk's pages cannot be dropped
        whole = Path(scratch) / "whole"
        images = [photo(number) for number in range(100)]
        records = ((f"{n:06d}", images[n % 100], captions(n)) for n in range(arguments.count))
        write_mvlm(records, whole, SHARD_BYTES)
        found = {"rows": arguments.count, "seed": arguments.seed} | campaign(whole, arguments.flips, arguments.seed)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def campaign(whole: Path, flips: int, seed: int) -> dict[str, Any]:
    """Flip bits in a copy of a corpus, made beside it, and load epochs of both."""
    damaged = Path(shutil.copytree(whole, whole.with_name("damaged")))
    flipped = flip(damaged, flips, np.random.default_rng(seed))
    in_rows = [rows for rows in flipped if rows]
    found: dict[str, Any] = {"flips": flips, "in rows": len(in_rows)}
    found["damaged rows"] = len({row for rows in in_rows for row in rows})
    for epoch in ("images", "pairs"):
        before = bytes_from_disk()
        drop_pages(damaged)
        noticed, wrong, samples = load(whole, damaged, epoch, {row for rows in in_rows for row in rows})
        found[f"an epoch of {epoch}"] = {
            "samples": samples,
            "flips noticed": sum(not noticed.isdisjoint(rows) for rows in in_rows),
            "samples that are not right": wrong,
            "MB from the disk": round((bytes_from_disk() - before) / 1e6),
        }
    return found


def flip(folder: Path, count: int, random: np.random.Generator) -> list[tuple[int, ...]]:
    """Flip a bit in `count` different bytes of a corpus's shards; return the rows that each byte is part of."""
    paths = sorted(folder.glob("*.arrow"))
    ends = np.cumsum([path.stat().st_size for path in paths])
    places = np.sort(random.choice(int(ends[-1]), count, replace=False))
    found, first_row = [], 0
    for path, end in zip(paths, ends.tolist(), strict=True):
        start = end - path.stat().st_size
        ranges = sorted(ranges_of(path, first_row))
        begins = [begin for begin, _, _ in ranges]
        content = bytearray(path.read_bytes())
        for place in places[(places >= start) & (places < end)].tolist():
            content[place - start] ^= 1 << int(random.integers(8))
            nearest = ranges[bisect_right(begins, place - start) - 1]
            found.append(nearest[2] if nearest[0] <= place - start < nearest[1] else ())
        first_row += pa.ipc.open_file(pa.memory_map(str(path))).read_all().num_rows
        path.write_bytes(content)
    return found


def ranges_of(path: Path, first_row: int) -> Iterator[Range]:
    """Where the rows of a shard lie, according to pyarrow."""
    whole = pa.py_buffer(path.read_bytes())
    reader = pa.ipc.open_file(pa.BufferReader(whole))
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        rows = [(first_row + row,) for row in range(len(batch))]
        for column in batch.columns:
            yield from _ranges(column, rows, whole)
        first_row += len(batch)


def _ranges(column: pa.Array, rows: list[tuple[int, ...]], whole: pa.Buffer) -> Iterator[Range]:
    """The ranges of an array whose values belong to `rows`: its offsets, each shared by two values, and its bytes."""
    buffers = column.buffers()
    if pa.types.is_primitive(column.type):
        at, width = buffers[1].address - whole.address, column.type.bit_width // 8
        yield from ((at + width * n, at + width * (n + 1), of) for n, of in enumerate(rows))
        return
    at = buffers[1].address - whole.address
    ends = np.frombuffer(buffers[1], np.int32)[: len(column) + 1].tolist()
    for n in range(len(column) + 1):
        yield at + 4 * n, at + 4 * (n + 1), tuple({*(rows[n - 1] if n else ()), *(rows[n] if n < len(rows) else ())})
    if pa.types.is_list(column.type):
        owners = [of for n, of in enumerate(rows) for _ in range(ends[n + 1] - ends[n])]
        yield from _ranges(column.values, owners, whole)
        return
    data = buffers[2].address - whole.address
    yield from ((data + ends[n], data + ends[n + 1], of) for n, of in enumerate(rows))


def load(whole: Path, damaged: Path, epoch: str, bad: set[int]) -> tuple[set[int], int, int]:
    """The rows that an epoch of the damaged corpus reports, and the number of its wrong samples and of all samples."""
    streams = [opened(folder, epoch) for folder in (whole, damaged)]
    size = streams[0].dataset.mixture.per_epoch // BATCH * BATCH
    wrong = 0
    with streams[0] as sound, streams[1] as found:
        for _ in range(size // BATCH):
            (expected,), (given,) = next(sound), next(found)
            replaced = {fault.position for fault in found.faults}
            for n, position in enumerate(given.position_B.tolist()):
                row = int(given.image_id_B[n])
                same = row == int(expected.image_id_B[n]) and bool(
                    (given.image_BCHW[n] == expected.image_BCHW[n]).all()
                    and given.caption_id_B[n] == expected.caption_id_B[n]
                )
                wrong += row in bad or not (same or position in replaced)
        return {fault.row for fault in found.faults}, wrong, size


def opened(folder: Path, epoch: str, start: int = 0) -> Loader:
    from benchmarks.data.load_peers import make_tokenizer

    data = Data(epoch=epoch, randaugment=(0, 0))
    mixture = Mixture([folder], pairs=epoch == "pairs")
    dataset = PairDataset(mixture, make_tokenizer(), data, Objectives(), SIDE, 0, (SIDE // 16, SIDE // 16))
    sampler = make_sampler(mixture, 0, [order_of(data)])
    return Loader(dataset, sampler, global_batch=BATCH, micro_batch=BATCH, start_position=start)


def drop_pages(folder: Path) -> None:
    """Drop the files from the system's cache, so that they are read from the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_from_disk() -> int:
    """The bytes that this process has read from disks so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


if __name__ == "__main__":
    main()
