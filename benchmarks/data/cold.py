"""How fast a global shuffle, blocks and whole shards are read from a disk whose pages are not in memory, and its load.

    python benchmarks/data/cold.py FOLDER

Images of 49 kB in shards of 16 MB in FOLDER, on the disk to be measured. Each order reads the same number of rows and
all bytes of their images, one after the other, as a loader's thread does, after the pages of the corpus have been
dropped (POSIX_FADV_DONTNEED: other processes keep theirs). A slower disk is simulated by the block layer's own limit on
reads per second (blkio.throttle.read_iops_device of a version 1 cgroup, root only): 100, like a rotating disk, and
1,000, like a small rented volume. The same cgroup counts the reads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.data.corpus import SIZE, captions, photo  # noqa: E402
from benchmarks.data.write import machine  # noqa: E402
from data_tools.writer import CorpusWriter  # noqa: E402
from mvlm.config.schema import Data  # noqa: E402
from mvlm.data.loading.sampler import make_sampler, order_of  # noqa: E402
from mvlm.data.shards.mixture import Mixture  # noqa: E402
from mvlm.runtime.disk import seconds_a_read  # noqa: E402

RESULT = Path(__file__).parent / "results" / "cold.json"
CONTROL = Path("/sys/fs/cgroup/blkio")
LIMITS = (0, 1000, 100)
"""Reads per second; 0 = as many as the disk allows."""

UNLIMITED = 10_000_000  # reads are only counted if there is a limit
ROWS, SHARD_BYTES, DISTINCT = 20_000, 16_000_000, 100
READ = {0: 2000, 1000: 1000, 100: 300}
"""Rows to read under each limit."""

ORDERS = {
    "global": Data(shuffle="global"),
    "blocks": Data(shuffle="blocks"),
    "blocks of 16, 16 together": Data(shuffle="blocks", shuffle_block=16, shuffle_window=16),
    "4 whole shards together": Data(shuffle_shards=4),
}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folder", type=Path)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    words.add_argument("--one", nargs=3, metavar=("ORDER", "LIMIT", "START"), help=argparse.SUPPRESS)
    arguments = words.parse_args()
    place = arguments.folder / "corpus"
    if arguments.one:
        order, limit, start = arguments.one
        print(json.dumps(measured(place, order, int(limit), int(start))))
        return
    if not place.exists():
        write(place)
    found = {}
    for limit in LIMITS:
        for order in ORDERS:
            rounds = [in_a_process(arguments.folder, order, limit, number) for number in range(arguments.rounds)]
            medians = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
            found[f"{order}, {limit or 'all'} reads/s"] = medians
            print(order, limit, rounds, flush=True)
            result = {"measured": found, "rounds": arguments.rounds, "machine": machine()}
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")  # if interrupted, it keeps what it has found


def write(place: Path) -> None:
    images = [photo(number) for number in range(DISTINCT)]
    writer = CorpusWriter(place, SHARD_BYTES)
    for number in range(ROWS):
        image = images[number % DISTINCT]
        row = {"key": f"{number:08d}", "image": image, "captions": captions(number), "source": "benchmark"}
        writer.add(SimpleNamespace(**row, width=SIZE[0], height=SIZE[1], crc32=crc32(image)))
    writer.close()


def in_a_process(folder: Path, order: str, limit: int, start: int) -> dict[str, float]:
    command = [sys.executable, __file__, str(folder), "--one", order, str(limit), str(start)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def measured(place: Path, order: str, limit: int, start: int) -> dict[str, float]:
    """Read rows from a place in an epoch that `start` chooses; times are wall-clock."""
    mixture = Mixture([place])
    first = mixture.per_epoch // 10 * (1 + 3 * start)
    rows = make_sampler(mixture, 0, [order_of(ORDERS[order])])(np.arange(first, first + READ[limit]))[0].tolist()
    group = CONTROL / f"mvlm-cold-{os.getpid()}"
    device = os.stat(place).st_dev
    group.mkdir()
    try:
        name = f"{os.major(device)}:{os.minor(device)}"
        (group / "blkio.throttle.read_iops_device").write_text(f"{name} {limit or UNLIMITED}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        drop(place)
        probe = seconds_a_read(sorted(place.glob("*.arrow")))
        drop(place)
        before, began = reads(group), time.perf_counter()
        for row in rows:
            mixture.row(row).encoded[0].checked()
        seconds = time.perf_counter() - began
        count, size = (now - then for now, then in zip(reads(group), before, strict=True))
    finally:
        (CONTROL / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()
    return {
        "rows/s": len(rows) / seconds,
        "reads a row": count / len(rows),
        "read, x the images": size / (len(rows) * 49_000),
        "probe, ms": 1e3 * probe,
    }


def drop(place: Path) -> None:
    for path in place.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)  # pages that are not on the disk yet cannot be dropped
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def reads(group: Path) -> tuple[int, int]:
    """Reads, and bytes read, by the processes of a group so far."""

    def total(name: str) -> int:
        lines = (line.split() for line in (group / name).read_text().splitlines())
        return sum(int(words[2]) for words in lines if words[1:2] == ["Read"])

    return total("blkio.throttle.io_serviced"), total("blkio.throttle.io_service_bytes")


if __name__ == "__main__":
    main()
