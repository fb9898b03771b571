"""What checking every row as it is read costs, compared with decoding its image.

    python benchmarks/data/integrity.py

CPU seconds per row of one process with one thread, medians of interleaved rounds in one run, rows at random from a RAM
disk with warm pages. The image's checksum is measured with its bytes cold in the processor's caches, as training reads
them, and decoding with them warm, so that the share is overestimated. Opening includes reading the first row.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.data.corpus import SIZE, captions, in_memory, photo  # noqa: E402
from benchmarks.data.write import machine  # noqa: E402
from data_tools.writer import CorpusWriter  # noqa: E402
from mvlm.config.schema import Data  # noqa: E402
from mvlm.data.images.decode import chosen, open_picture  # noqa: E402
from mvlm.data.images.transforms import train_view  # noqa: E402
from mvlm.data.shards.corpus import Corpus  # noqa: E402
from mvlm.data.shards.mixture import Mixture  # noqa: E402
from mvlm.data.shards.schema import MANIFEST  # noqa: E402

RESULT = Path(__file__).parent / "results" / "integrity.json"
SIDE = 224


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--count", type=int, default=4000, help="rows (default: 4000)")
    words.add_argument("--distinct", type=int, default=200, help="different images among them (default: 200)")
    words.add_argument("--rounds", type=int, default=7)
    words.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    arguments = words.parse_args()
    with in_memory() as scratch:
        images = [photo(number) for number in range(arguments.distinct)]
        seconds = measured(Path(scratch), images, arguments.count, arguments.rounds)
    result = {
        "machine": machine(),
        "decoder": chosen().name,
        "image bytes": round(statistics.mean(map(len, images))),
        "microseconds": {name: round(1e6 * value, 2) for name, value in seconds.items()},
        "share of decoding, %": {
            name: round(100 * seconds[name] / seconds["decode, crop, resize"], 2)
            for name in ("image's checksum", "texts' checksum")
        },
        "whole rows, images unread /CPU-s": round(1 / seconds["row, texts checked"]),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measured(scratch: Path, images: list[bytes], count: int, rounds: int) -> dict[str, float]:
    """CPU seconds of each job, per row or shard."""
    writer = CorpusWriter(scratch / "s", 64_000_000)
    for number in range(count):
        image = images[number % len(images)]
        row = {"key": f"{number:08d}", "image": image, "captions": captions(number), "source": "benchmark"}
        writer.add(SimpleNamespace(**row, width=SIZE[0], height=SIZE[1], crc32=zlib.crc32(image)))
    shards = len(writer.close().shards)
    mixture = Mixture([scratch / "s"])
    plain = Mixture([unindexed(scratch)])
    order = np.random.default_rng(0).permutation(count).tolist()
    view, area = np.empty((3, SIDE, SIDE), np.uint8), Data().crop_scale

    def rows(of: Mixture) -> None:
        for row in order:
            of.row(row)

    def checked() -> None:
        for row in order:
            mixture.row(row).encoded[0].checked()

    def opened(folder: str) -> Callable[[], None]:
        corpus = Corpus(scratch / folder)

        def touch() -> None:
            corpus._opened.clear()
            for first in corpus.shard_starts[:-1]:
                corpus.row(first)

        return touch

    def decoded() -> None:
        for number, image in enumerate(images):
            train_view(open_picture(image), SIDE, np.random.default_rng(number), area, True, (0, 0), view)

    jobs: dict[str, tuple[Callable[[], None], int]] = {
        "texts unchecked": (lambda: rows(plain), count),
        "row, texts checked": (lambda: rows(mixture), count),
        "all checked": (checked, count),
        "decode, crop, resize": (decoded, len(images)),
        "open a shard by its index": (opened("s"), shards),
        "open a shard by Arrow": (opened("plain"), shards),
    }
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds + 1):  # the first of them warms up
        for name, (job, times) in jobs.items():
            began = time.process_time()
            job()
            spent[name].append((time.process_time() - began) / times)
    seconds = {name: statistics.median(of[1:]) for name, of in spent.items()}
    seconds["texts' checksum"] = seconds["row, texts checked"] - seconds["texts unchecked"]
    seconds["image's checksum"] = seconds["all checked"] - seconds["row, texts checked"]
    return seconds


def unindexed(scratch: Path) -> Path:
    """The same shards without their indexes."""
    plain = scratch / "plain"
    plain.mkdir()
    for shard in (scratch / "s").glob("*.arrow"):
        os.link(shard, plain / shard.name)
    manifest = json.loads((scratch / "s" / MANIFEST).read_text())
    del manifest["indexes"]
    (plain / MANIFEST).write_text(json.dumps(manifest))
    return plain


if __name__ == "__main__":
    main()
