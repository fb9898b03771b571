"""Where the seconds go until a restarted rank passes the step that it had reached:

    python -m benchmarks.startup [--times N]

A tiny model is trained for some updates on a CPU and saved. Then copies of that run are resumed for one more update, in
turns in a separate process (cold), in one that is forked from a process which has imported everything (warmed), and in
one that is held until it has imported everything, where only the time after that counts (released). What a rank imports
is also imported alone, with one more package each time. CPU seconds, user and system, are hardly affected by other work
on the machine. results/startup.jsonl gets a line for each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from benchmarks.kept import add_record, code_version
from mvlm.__main__ import main as mvlm
from mvlm.runtime.imports import uncollected
from mvlm.runtime.launch import HELD
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results/startup.jsonl"
UPDATES = 4
IMPORTS = {
    "interpreter": "",
    "torch": "import torch",
    "timm, with torchvision": "import torch, timm",
    "transformers": "import torch, timm, mvlm.model.text",
    "deepspeed": "import torch, timm, mvlm.model.text, deepspeed",
    "the rest of a rank": "import torch, timm, mvlm.model.text, deepspeed, mvlm.cli.train, mvlm.training.fit.run",
}
"""Imports that are measured alone, each including those before it."""
WARMED = "mvlm.training.fit.run", "mvlm.evaluate.training", "mvlm.training.logging.trackers", "deepspeed"


def command(shards: Path, run: Path, steps: int) -> list[str]:
    words = ["train", "mvlm/configs/tiny.toml", "--deepspeed_config", "ds_configs/cpu.json", *TINY]
    return [*words, f"data.train={shards}", f"run.dir={run}", f"train.steps={steps}", f"checkpoint.every={UPDATES}"]


def cold(words: list[str]) -> float:
    """CPU seconds of a separate process."""
    return of_children(lambda: subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL))


def warmed(words: list[str]) -> float:
    """CPU seconds of a process forked from one that has imported everything, whose own time does not count."""
    source = f"import json, sys; from benchmarks.startup.__main__ import fork; fork({words!r})"
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def fork(words: list[str]) -> None:
    """Import everything, fork a rank, and print its CPU seconds."""
    with uncollected():
        for name in WARMED:
            import_module(name)

    def rank() -> None:
        if not (pid := os.fork()):
            sys.argv = ["mvlm", *words]
            code = mvlm(words)
            sys.stdout.flush()
            os._exit(code)
        if os.waitpid(pid, 0)[1]:
            sys.exit("the forked rank failed")

    print(of_children(rank), flush=True)


def released(words: list[str]) -> float:
    """CPU seconds of a separate process, which waits once everything is imported, from its release on."""
    before = 0.0

    def rank() -> None:
        nonlocal before
        with subprocess.Popen(
            words, cwd=ROOT, env=os.environ | {HELD: "1"}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as process:
            while not Path(f"/proc/{process.pid}/syscall").read_text().startswith("0 0x0 "):  # until it reads stdin
                time.sleep(0.1)
            times = psutil.Process(process.pid).cpu_times()
            before = sum(times[:4])  # including its children's
            process.communicate(b"\n")
        if process.returncode:
            sys.exit("the held rank failed")

    return of_children(rank) - before


def of_children(work: Callable[[], object]) -> float:
    """CPU seconds of the processes that are started, and end, during some work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepared(folder: Path) -> tuple[Path, Path]:
    """Make shards, and a run that is saved after some updates."""
    shards, run = folder / "scenes", folder / "run"
    synth = ["data_tools", "synth", "--task", "caption", "--count", "64", "--out", str(shards)]
    for words in (synth, ["mvlm", *command(shards, run, UPDATES)]):
        subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return shards, run


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--times", type=int, default=3, help="times to measure each (default: 3)")
    times = options.parse_args().times
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}

    def keep(what: str, seconds: float) -> None:
        line: dict[str, Any] = {"commit": code_version(), "what": what, "cpu_s": round(seconds, 2)}
        line |= {"time": round(time.time()), "load": os.getloadavg()[0]}
        add_record(RESULTS, line)
        print(json.dumps(line), flush=True)

    with tempfile.TemporaryDirectory() as name:
        shards, run = prepared(Path(name))
        for number in range(times):
            for how in (cold, warmed, released):
                own = Path(name) / f"{how.__name__}-{number}"
                shutil.copytree(run, own)
                trained = command(shards, own, UPDATES + 1)
                words = trained if how is warmed else [sys.executable, "-m", "mvlm", *trained]
                keep(f"{how.__name__} start", how(words))
                steps = [json.loads(line).get("step") for line in (own / "metrics.jsonl").read_text().splitlines()]
                assert steps[-1] == UPDATES + 1, steps
            for what, source in IMPORTS.items():
                keep(f"imports up to {what}", cold([sys.executable, "-c", source]))


if __name__ == "__main__":
    main()
