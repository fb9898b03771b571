"""Images downloaded per CPU second, from a table of links, many of them faulty, to shards; compared with img2dataset.

    python benchmarks/data/download.py --img2dataset VENV/bin/img2dataset

A server in its own process, whose time is counted separately, answers 20,000 links on 50 loopback addresses with a few
hundred distinct JPEGs; about one link in ten has a fault. Each case is a process whose CPU time, children included, the
kernel counts. Finished cases are kept, so that the same command resumes where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.data.corpus import photo  # noqa: E402
from benchmarks.data.write import machine  # noqa: E402

SIZE = (320, 240)
FAULTS = {
    "moved": 600,  # of 20,000
    "slow": 400,
    "404": 400,
    "flaky": 200,
    "dropped": 100,
    "reset": 100,
    "short": 100,
    "html": 80,
    "noai": 60,
    "500": 20,
    "loop": 20,
    "hang": 10,
    "drip": 2,
}
GOOD = ("ok", "moved", "slow", "flaky", "dropped")
SECONDS, RETRIES, CONNECTIONS, SIDE, QUALITY = 10, 1, 64, 200, 90
ALONE = "ours, downloading alone"
DOWNLOAD = f"""
import json, sys
from collections import Counter
from pathlib import Path
from data_tools.readers.urls import UrlSource
source = UrlSource(
    [Path(sys.argv[1])], connections={CONNECTIONS}, timeout={SECONDS}, retries={RETRIES}, allow_loopback=True
)
found = Counter(getattr(item, "reason", "") for item in source)
Path(sys.argv[2]).write_text(json.dumps(found))
"""
"""Reads the source as `ours` does, without looking at the images."""

CASES = ("ours, as they come", ALONE, "img2dataset, as they come", "ours, shrunk", "img2dataset, shrunk")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img2dataset", type=Path, required=True, help="the command, in its own environment")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--distinct", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/download.json")
    arguments = parser.parse_args()
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"runs": []}
    kept |= {"machine": machine(), "count": arguments.count, "size": SIZE, "faults": faults(arguments.count)}
    done = {(run["case"], run["round"]) for run in kept["runs"]}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "images").mkdir()
        for number in range(arguments.distinct):
            (work / f"images/{number:04d}.jpg").write_bytes(photo(number, SIZE))
        for number in range(arguments.rounds):
            for case in CASES:
                if (case, number) not in done:
                    print(case, number, flush=True)
                    found = measure(case, work, arguments.count, arguments.img2dataset)
                    kept["runs"].append({"case": case, "round": number} | found)
                    arguments.out.write_text(json.dumps(kept, indent=1) + "\n")
    for case in CASES:
        rates = sorted(run["images_per_cpu_s"] for run in kept["runs"] if run["case"] == case)
        print(f"{case}: {rates[len(rates) // 2]:,.0f} images/CPU-s of {len(rates)} rounds")


def faults(count: int) -> dict[str, int]:
    return {fault: number * count // 20_000 for fault, number in FAULTS.items()}


def links(count: int, port: int) -> list[str]:
    """The table's links: faults are spread evenly over it, each kind over many hosts."""
    kinds = ["ok"] * count
    place = 0
    for fault, number in faults(count).items():
        for _ in range(number):
            place = (place + 7919) % count
            while kinds[place] != "ok":
                place = (place + 1) % count
            kinds[place] = fault
    return [f"http://127.0.0.{1 + number % 50}:{port}/{kind}/{number}.jpg" for number, kind in enumerate(kinds)]


def measure(case: str, work: Path, count: int, img2dataset: Path) -> dict[str, Any]:
    """Run one case against a new server."""
    script = ROOT / "tests/data_tools/image_server.py"
    server = subprocess.Popen([sys.executable, script, work / "images"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    table, out = work / "links.parquet", Path(tempfile.mkdtemp(dir=work))
    urls = links(count, int(server.stdout.readline()))
    pq.write_table(pa.table({"url": urls, "caption": [f"photograph {n}" for n in range(count)]}), table)
    argv = command(case, table, out, img2dataset)
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    start = time.monotonic()
    with (work / "log").open("w") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=ROOT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{case}: exit {process.returncode}\n{(work / 'log').read_text()[-2000:]}")
    of_server = psutil.Process(server.pid).cpu_times()
    server.kill()
    server.wait()
    images, dropped = outcome(case, out)
    expected = count - sum(number for fault, number in faults(count).items() if fault not in GOOD)
    cpu = usage.ru_utime + usage.ru_stime
    return {
        "images": images,
        "expected_images": expected,
        "not_images": dropped,
        "lost": count - images - sum(dropped.values()),
        "cpu_s": round(cpu, 2),
        "wall_s": round(wall, 1),
        "server_cpu_s": round(of_server.user + of_server.system, 2),
        "images_per_cpu_s": round(images / cpu, 1),
    }


def command(case: str, table: Path, out: Path, img2dataset: Path) -> list[str]:
    if case == ALONE:
        return [sys.executable, "-c", DOWNLOAD, str(table), str(out / "outcome.json")]
    shrunk = case.endswith("shrunk")
    return ours(table, out, shrunk) if case.startswith("ours") else theirs(img2dataset, table, out, shrunk)


def ours(table: Path, out: Path, shrunk: bool) -> list[str]:
    bounds = f"--allow-loopback --connections {CONNECTIONS} --timeout {SECONDS} --retries {RETRIES} --workers 1"
    resize = f"--longest-side {SIDE} --quality {QUALITY}" if shrunk else ""
    command = [sys.executable, "-m", "data_tools", "shard", "urls", str(table), "--out", str(out / "shards")]
    return [*command, *bounds.split(), *resize.split()]


def theirs(command: Path, table: Path, out: Path, shrunk: bool) -> list[str]:
    resize = {
        "resize_mode": "keep_ratio_largest" if shrunk else "no",
        "image_size": SIDE,
        "resize_only_if_bigger": True,
        "encode_quality": QUALITY,
        "skip_reencode": not shrunk,
    }
    bounds = {"processes_count": 1, "thread_count": CONNECTIONS, "timeout": SECONDS, "retries": RETRIES}
    table_of = {"url_list": table, "input_format": "parquet", "url_col": "url", "caption_col": "caption"}
    options = {"output_folder": out / "tars", "output_format": "webdataset", "enable_wandb": False}
    given = options | table_of | bounds | resize
    return [str(command), *(f"--{name}={value}" for name, value in given.items())]


def outcome(case: str, out: Path) -> tuple[int, dict[str, int]]:
    """The number of images, and of the other links by what became of them."""
    if case == ALONE:
        found = json.loads((out / "outcome.json").read_text())
        return found.pop(""), found
    return our_outcome(out) if case.startswith("ours") else their_outcome(out)


def our_outcome(out: Path) -> tuple[int, dict[str, int]]:
    report = json.loads((out / "shards/yield.json").read_text())
    return report["kept"], report["dropped"]


def their_outcome(out: Path) -> tuple[int, dict[str, int]]:
    """From the table of each shard; img2dataset counts an image by its status alone."""
    found: Counter[str] = Counter()
    for table in sorted((out / "tars").glob("*.parquet")):
        for row in pq.read_table(table, columns=["status", "error_message"]).to_pylist():
            found[row["status"] if row["status"] == "success" else str(row["error_message"])[:60]] += 1
    images = found.pop("success", 0)
    return images, dict(found.most_common(30))


if __name__ == "__main__":
    main()
