"""The calls that reach a run folder while ranks train: python benchmarks/ranks/folder.py SHARDS

Ranks train a small model under strace (Debian's), which records every call that names or writes a file. Those in the
run folder between the first and the last line of metrics.jsonl, which leaves out start, checkpoints and end, are
counted by purpose, for rank 0 and the mean of the others. results/folder.jsonl gets a line for each number of ranks.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT)

from benchmarks.kept import code_version  # noqa: E402
from benchmarks.ranks.counting import keep  # noqa: E402
from mvlm.runtime.launch import free_port  # noqa: E402
from mvlm.training.health.heartbeat import period_s  # noqa: E402

CALLS = "%file,write,writev,pwrite64,ftruncate,fsync,fstat,flock,getdents64,close"
HANG_MINUTES = 1.0
SETTINGS = (
    "train.steps=100",
    "checkpoint.every=0",
    "log.every=5",
    "data.vocabulary=2000",
    "model.vision_args={patch_size=8, embed_dim=32, depth=1, num_heads=2}",
    f"train.hang_minutes={HANG_MINUTES}",
)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("shards", type=Path)
    words.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    asked = words.parse_args()
    for ranks in asked.ranks:
        with tempfile.TemporaryDirectory() as folder:
            found = {"ranks": ranks} | counted(Path(folder), asked.shards.absolute(), ranks)
        keep("folder.jsonl", found | {"commit": code_version()})


def counted(folder: Path, shards: Path, ranks: int) -> dict[str, Any]:
    """Calls per minute, by purpose, of rank 0 and on average of each other rank."""
    run = folder / "run"
    trace(folder, run, shards, ranks)
    calls = [list(read(folder / f"calls.{rank}", str(run))) for rank in range(ranks)]
    logged = [when for when, call, path in calls[0] if path == "metrics.jsonl" and call.startswith("write")]
    minutes = (logged[-1] - logged[0]) / 60
    kinds = [
        Counter(path.split("/")[0] for when, _, path in of_rank if logged[0] < when < logged[-1]) for of_rank in calls
    ]
    others = sum(kinds[1:], Counter[str]())
    return {
        "minutes": round(minutes, 2),
        "steps a minute": round(5 * (len(logged) - 1) / minutes, 1),
        "heartbeats a minute": 60 / period_s(HANG_MINUTES),
        "rank 0": {kind: round(count / minutes, 1) for kind, count in kinds[0].items()},
        "another rank": {kind: round(count / minutes / (ranks - 1), 1) for kind, count in others.items()},
    }


def trace(folder: Path, run: Path, shards: Path, ranks: int) -> None:
    strace = shutil.which("strace") or sys.exit("Install strace, as Debian's package of that name.")
    command = [sys.executable, "-m", "mvlm", "train", str(ROOT / "mvlm/configs/tiny.toml")]
    command += ["--deepspeed_config", str(ROOT / "ds_configs/cpu.json"), f"data.train={shards}", f"run.dir={run}"]
    always = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    always |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [
                strace,
                "-f",
                "-y",
                "-ttt",
                "-e",
                f"trace={CALLS}",
                "-o",
                str(folder / f"calls.{rank}"),
                *command,
                *SETTINGS,
            ],
            env=os.environ | always | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        sys.exit("Training failed: its message is above.")


def read(path: Path, run: str) -> list[tuple[float, str, str]]:
    """Time, name and path in the run folder of each call there; an interrupted and resumed call counts once."""
    line = re.compile(rf"^\d+ +(\d+\.\d+) ([a-z0-9_]+)\(.*?{re.escape(run)}/?([^\">]*)")
    found = (line.match(text) for text in path.read_text(errors="replace").splitlines())
    return [(float(match[1]), match[2], match[3]) for match in found if match]


if __name__ == "__main__":
    main()
