"""Loading images that stay in a tar or in parquet, compared with shards that hold the same images.

    python -m benchmarks.data.in_place examples/emoji.tar

CPU seconds of an epoch of `CaptionLoader`, decoded and augmented to 224 pixels in this process, and of only reading
each image's checked bytes; the three take turns, round by round, in one process. Writes results/in_place.json.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import mvlm
from data_tools.__main__ import main as data_tools
from mvlm.data import CaptionLoader
from mvlm.data.shards.mixture import Mixture

RESULTS = Path(__file__).parent / "results/in_place.json"
ROUNDS = 7


def as_webdataset(rows: list[mvlm.api.shards.CaptionedImage], out: Path) -> None:
    with tarfile.open(out, "w") as tar:
        for number, row in enumerate(rows):
            for ending, content in (("jpg", row.encoded), ("txt", row.captions[0].encode())):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def as_parquet(rows: list[mvlm.api.shards.CaptionedImage], out: Path) -> None:
    """As on Hugging Face's hub: compressed with snappy, a hundred images to a row group."""
    images = [{"bytes": row.encoded, "path": None} for row in rows]
    table = pa.table({"image": images, "caption": [row.captions[0] for row in rows]})
    pq.write_table(table, out, compression="snappy", row_group_size=100)


def epoch(folder: Path) -> int:
    with CaptionLoader(folder, batch=64, workers=0) as loader:
        return sum(len(captions) for _, captions in loader)


def bytes_alone(folder: Path) -> int:
    mixture = Mixture([folder])
    return sum(len(mixture.row(row).image) > 0 for _ in range(10) for row in range(len(mixture)))


def seconds(measured: Callable[[Path], int], folder: Path) -> float:
    """CPU seconds per image."""
    began = time.process_time()
    images = measured(folder)
    return (time.process_time() - began) / images


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("archive", type=Path, help="a corpus that `shard folder` reads")
    arguments.add_argument("--images", type=int, default=512)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as above:
        work = Path(above)
        data_tools(["shard", "folder", str(asked.archive), "--workers", "1", "--out", str(work / "all")])
        rows = mvlm.open(work / "all")[: asked.images]
        as_webdataset(rows, work / "0.tar")
        as_parquet(rows, work / "0.parquet")
        made = {
            "shards": ["webdataset", "0.tar"],
            "tar": ["webdataset", "0.tar", "--in-place"],
            "parquet": ["hf", "0.parquet", "--in-place"],
        }
        for name, (source, file, *options) in made.items():
            data_tools(["shard", source, str(work / file), *options, "--workers", "1", "--out", str(work / name)])
        found: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for measured in (epoch, bytes_alone):
                for name in made:
                    found.setdefault(f"{measured.__name__} {name}", []).append(seconds(measured, work / name))
    medians = {name: statistics.median(times) for name, times in found.items()}
    speeds = {
        f"{kind} {name}": round(medians[f"{kind} shards"] / medians[f"{kind} {name}"], 3)
        for kind in ("epoch", "bytes_alone")
        for name in ("tar", "parquet")
    }
    result = {
        "images": asked.images,
        "images_per_cpu_second": {name: round(1 / value) for name, value in medians.items()},
        "speed_of_shards": speeds,
        "rounds": {name: [round(1 / value) for value in times] for name, times in found.items()},
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
