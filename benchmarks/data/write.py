"""How fast records become shards, compared with webdataset's ShardWriter and with decoding alone.

    python benchmarks/data/write.py

All figures are images per CPU second of one process, medians of interleaved rounds in one run, on a RAM disk; a ratio
is the median of the rounds' ratios. "Serialise and hash" is what sharding does with every image besides decoding it: a
CRC-32 of the image, one of all else in its row, and the shard's hash.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import simplejpeg
import webdataset
from blake3 import blake3
from PIL import Image
from zlib_ng import zlib_ng

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.data.corpus import SIZE, captions, in_memory, photo, write_folder  # noqa: E402
from data_tools.pipeline import Options  # noqa: E402
from data_tools.readers.folder import FolderSource  # noqa: E402
from data_tools.sharding import shard  # noqa: E402
from data_tools.writer import CorpusWriter  # noqa: E402

SHARD_BYTES = 64_000_000
RESULT = Path(__file__).parent / "results" / "write.json"
GOALS = {
    "serialise and hash / webdataset ShardWriter": 4,
    "whole sharding / decode alone, brightness": 0.9,
    "size over the JPEG bytes, %": 0.5,
}
COMPARED = [
    *((ours, "webdataset ShardWriter") for ours in ("serialise", "serialise and hash")),
    *(("whole sharding", f"decode alone, {kind}") for kind in ("brightness", "means of blocks", "RGB", "Pillow RGB")),
]
MADE = {"serialise": "arrow", "webdataset ShardWriter": "tars"}


class NoHash:
    """Stands in for a hash when only serialising is measured."""

    def update(self, data: memoryview) -> None:
        pass

    def hexdigest(self) -> str:
        return 64 * "0"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--count", type=int, default=2000, help="images a round (default: 2000)")
    words.add_argument("--distinct", type=int, default=200, help="different images among them (default: 200)")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    arguments = words.parse_args()
    with in_memory() as folder:
        found = measure(Path(folder), arguments.count, arguments.distinct, arguments.rounds)
    found |= {"goals": GOALS, "machine": machine()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def measure(work: Path, count: int, distinct: int, rounds: int) -> dict[str, object]:
    images = [photo(seed) for seed in range(distinct)]
    # Each record has its own copy of the bytes, so that no cache holds them all.
    rows = [row(number, bytes(bytearray(images[number % distinct]))) for number in range(count)]
    write_folder(work / "folder", images, count)
    image_bytes = sum(len(one.image) for one in rows)
    jobs: dict[str, Callable[[], object]] = {
        "serialise": lambda: serialise(rows, work / "arrow", NoHash),
        "serialise and hash": lambda: serialise(rows, work / "arrow", blake3),
        "webdataset ShardWriter": lambda: tars(rows, work / "tars"),
        "whole sharding": lambda: whole(work / "folder", work / "out"),
        "decode alone, RGB": lambda: decode(rows, simplejpeg.decode_jpeg),
        "decode alone, brightness": lambda: decode(rows, lambda image: simplejpeg.decode_jpeg(image, "GRAY")),
        "decode alone, means of blocks": lambda: decode(rows, block_means),
        "decode alone, Pillow RGB": lambda: decode(rows, lambda image: Image.open(io.BytesIO(image)).load()),
    }
    speeds: dict[str, list[float]] = {name: [] for name in jobs}
    over: dict[str, float] = {}
    for _ in range(rounds):
        for name, job in jobs.items():
            for made in (*MADE.values(), "out"):
                shutil.rmtree(work / made, ignore_errors=True)
            start = time.process_time()
            job()
            speeds[name].append(count / (time.process_time() - start))
            if name in MADE:
                written = sum(path.stat().st_size for path in (work / MADE[name]).iterdir())
                over[name] = round(100 * (written / image_bytes - 1), 3)
    median = {name: round(statistics.median(values)) for name, values in speeds.items()}
    return {
        "images/CPU-s": median,
        "spread": {name: [round(min(values)), round(max(values))] for name, values in speeds.items()},
        "size over the JPEG bytes, %": over,
        "ratios": {f"{a} / {b}": round(ratio(speeds[a], speeds[b]), 3) for a, b in COMPARED},
        "corpus": {"images": count, "distinct": distinct, "mean bytes": round(image_bytes / count), "size": SIZE},
        "rounds": rounds,
    }


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median ratio of the same rounds, so that other work on the machine cancels out."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def row(number: int, image: bytes) -> SimpleNamespace:
    said = {"key": f"{number:06d}", "captions": tuple(captions(number)), "source": "benchmark"}
    return SimpleNamespace(**said, image=image, width=SIZE[0], height=SIZE[1], crc32=0)


def serialise(rows: list[SimpleNamespace], folder: Path, hasher: type[blake3 | NoHash]) -> None:
    with patch("data_tools.writer.blake3", hasher):
        writer = CorpusWriter(folder, SHARD_BYTES)
        for one in rows:
            if hasher is blake3:
                one.crc32 = zlib_ng.crc32(one.image)
            writer.add(one)
        writer.close()


def decode(rows: list[SimpleNamespace], decoder: Callable[[bytes], object]) -> None:
    for one in rows:
        decoder(one.image)


def block_means(image: bytes) -> object:
    """The brightness of each block of 8 x 8, which is what sharding itself asks of the decoder."""
    return simplejpeg.decode_jpeg(image, "GRAY", min_width=1, min_height=1, min_factor=1)


def tars(rows: list[SimpleNamespace], folder: Path) -> None:
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxsize=SHARD_BYTES, verbose=0) as writer:
        for one in rows:
            about = {"captions": one.captions, "source": one.source, "width": one.width, "height": one.height}
            writer.write({"__key__": one.key, "jpg": one.image, "json": about})


def whole(source: Path, out: Path) -> None:
    origin = {"source": "folder", "paths": [str(source)], "options": {}}
    shard(FolderSource([source]), out, Options(shard_bytes=SHARD_BYTES, origin=origin))


def machine() -> dict[str, object]:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(": ")[2].strip() for line in file if line.startswith("model name")]
    libraries = ("pyarrow", "webdataset", "simplejpeg", "blake3", "zlib-ng", "pillow", "numpy")
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
    } | {name: version(name) for name in libraries}


if __name__ == "__main__":
    main()
