"""How long a query of the page takes over all icons: python -m benchmarks.icons.page runs/icons icons.index

`mvlm serve` is started on two threads and queried over HTTP as by its page: by the caption of a held-out icon (ITC,
then ITM over the first 24), by its picture as if it were drawn, and for the drawings of the results. results/page.json
has the medians and 90th percentiles of wall-clock time.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.icons.ceiling import RESULTS, rows
from benchmarks.kept import code_version

QUERIES, SHOWN, THREADS = 60, 32, 2


def serve(run: Path, index: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the server; returns it and its address, once it listens."""
    command = [sys.executable, "-m", "mvlm", "serve", str(run), "--index", str(index), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://\S+(?=\s)", line):
            return process, found.group()
    raise SystemExit("The server did not start.")


def ask(address: str, path: str, question: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The answer, and the milliseconds until it was read."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{address}/api/{path}", json.dumps(question).encode(), headers)
    began = time.perf_counter()
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read()), 1000 * (time.perf_counter() - began)


def measure(address: str, asked: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Milliseconds of each query, by kind."""
    taken: dict[str, list[float]] = {"words": [], "picture": [], "drawings": []}
    for row in asked:
        picture = {"upload": base64.b64encode(row["image"]).decode()}
        for kind, question in (("words", {"sentence": row["captions"][0]}), ("picture", {"picture": picture})):
            answer, ms = ask(address, "search", {**question, "top": SHOWN})
            assert len(answer["found"]) == SHOWN
            taken[kind].append(ms)
        images = [each["image"] for each in answer["found"] if each["about"]["svg"]]
        taken["drawings"].append(ask(address, "drawings", {"images": images})[1])
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run, such as runs/icons")
    parser.add_argument("index", type=Path, help="made by `mvlm index`")
    parser.add_argument("--pairs", type=Path, default=Path("shards/icons/pairs"), help="made by examples/icons/make.sh")
    args = parser.parse_args()
    asked = list(islice(rows(args.pairs / "concepts"), 0, 20 * QUERIES, 20))
    process, address = serve(args.run, args.index)
    try:
        with urllib.request.urlopen(f"{address}/api/about") as about:
            images = json.loads(about.read())["images"]
        measure(address, asked[:3])
        taken = measure(address, asked[3:])
    finally:
        process.terminate()
        process.wait()
    found: dict[str, Any] = {"images": images, "shown": SHOWN, "threads": THREADS, "commit": code_version()}
    for kind, values in taken.items():
        found[kind] = {
            "median_ms": round(float(np.median(values)), 1),
            "p90_ms": round(float(np.quantile(values, 0.9)), 1),
        }
    (RESULTS / "page.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
