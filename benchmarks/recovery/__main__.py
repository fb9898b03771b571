"""How long a training job stands still after a fault, and what of it is the scheduler's:

    python -m benchmarks.recovery [--on ray,slurm] [--times N]

A job of the tiny model trains on two nodes of a real Ray and of a real SLURM, whose nodes are network namespaces of
this machine. A fault befalls it, then the next. Kept in results/recovery.jsonl, in seconds from the fault: when the
scheduler says that it has noticed, when it starts what takes the place (SLURM holds a requeued job back), when the next
attempt begins, and when that passes the step that the run had come to.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from tests.cluster.ray_fixture import NODES, RayCluster, RayJob
from tests.cluster.slurm_fixture import SlurmCluster, SlurmJob, wait_for
from tests.conftest import ROOT, make_scenes

RESULTS = Path(__file__).parent / "results/recovery.jsonl"
EVERY = 5  # steps between checkpoints
STEPS = 100_000  # more than are made
BEFORE = 7  # steps of each attempt until a fault


Deed = Callable[[str], object]
"""Something that is done to a node."""


class OnRay:
    noticed = r'"asctime": "(\S+ \S+),\d+", .*RUNNING -> RESTARTING'
    """What the scheduler's log then says, with the moment."""
    starts = r'"asctime": "(\S+ \S+),\d+", .*RESTARTING -> SCHEDULING'

    def __init__(self, folder: Path, shards: Path) -> None:
        self.cluster = RayCluster(folder / "ray")
        self.cluster.up()
        for node in ("w1", "w2"):
            self.cluster.join(node)
        self.job = RayJob(self.cluster, folder, "recovery", shards)
        self.job.submit(f"checkpoint.every={EVERY}", f"train.steps={STEPS}", "job.requeue=1000")

    def faults(self) -> dict[str, tuple[Deed, Deed]]:
        """By name, what does it to a node, and what mends that."""
        return {
            "worker killed": (self._kill_worker, lambda node: None),
            "node lost": (self.cluster.lose, self._boot),
            "node cut off": (self.cluster.cut, self.cluster.heal),
        }

    def _kill_worker(self, node: str) -> None:
        ranks = self.job.ranks(len(self.job.attempts()))
        worker = next(rank for rank in ranks if self.cluster.node_of(rank) == node).parent()
        assert worker
        worker.kill()

    def _boot(self, node: str) -> None:
        subprocess.run(["bash", NODES, "start", str(self.cluster.folder), node], check=True, stdout=subprocess.DEVNULL)
        self.cluster.join(node)

    def victim(self, attempt: int) -> str:
        return self.job.rank_beside_the_head(attempt)[0]

    def log(self) -> str:
        logs = self.cluster.folder.glob("nodes/head/tmp-ray/session_2*/logs/train/ray-train-sys-controller*.log")
        return "\n".join(path.read_text() for path in logs)

    def metrics(self) -> list[int]:
        return [line["step"] for line in self.job.lines()]

    def down(self) -> None:
        self.cluster.down()


class OnSlurm:
    noticed = r"\[([\d-]+T[\d:]+)(?:\.\d+)?\] .*[Rr]equeue.*due to failure of node"
    starts = r"\[([\d-]+T[\d:]+)(?:\.\d+)?\] .*(Allocate|Started) JobId="

    def __init__(self, folder: Path, shards: Path) -> None:
        self.cluster = SlurmCluster(folder / "slurm")
        self.cluster.folder.mkdir()
        self.cluster.up()
        self.job = SlurmJob(self.cluster, folder / "recovery", shards)
        words = ["job.nodes=2", "job.requeue=1000", f"train.steps={STEPS}", f"checkpoint.every={EVERY}"]
        self.job.submit(*words)

    def faults(self) -> dict[str, tuple[Deed, Deed]]:
        return {
            "node lost": (partial(self.cluster.node, "kill"), self.cluster.boot),
            "node cut off": (partial(self.cluster.node, "cut"), partial(self.cluster.node, "heal")),
        }

    def victim(self, attempt: int) -> str:
        found = self.cluster.on("squeue", "--noheader", "--format=%N", "--states=RUNNING").stdout
        first, last = re.findall(r"\d+", found)
        return f"n{last if attempt % 2 else first}"

    def log(self) -> str:
        return (self.cluster.folder / "slurm/log/slurmctld.log").read_text()

    def metrics(self) -> list[int]:
        return [step for step, _ in self.job.metrics()]

    def down(self) -> None:
        self.cluster.down()


PLACES: dict[str, type[OnRay | OnSlurm]] = {"ray": OnRay, "slurm": OnSlurm}


def began(place: OnRay | OnSlurm, attempt: int) -> float | None:
    """The moment, once it is known."""
    folder = place.job.logs / f"attempt-{attempt:03d}"
    return folder.stat().st_ctime if folder.exists() else None


def recover(place: OnRay | OnSlurm, attempt: int, name: str) -> dict[str, Any]:
    """Seconds after one fault; the next attempt goes on behind."""
    do, mend = place.faults()[name]
    known = len(place.metrics())
    wait_for(lambda: len(place.metrics()) >= known + BEFORE, place.log)
    node, told = place.victim(attempt), len(place.log())
    at = time.time()
    do(node)
    wait_for(lambda: began(place, attempt + 1), place.log)
    started = began(place, attempt + 1)
    assert started
    reached = max(place.metrics())
    wait_for(lambda: place.metrics()[-1] > reached, place.log)
    passed = time.time()
    mend(node)
    said = place.log()[told:]
    moments = {"noticed": moment(place.noticed, said), "starts": moment(place.starts, said)}
    moments |= {"began": started, "passed": passed}
    return {name: round(when - at, 1) for name, when in moments.items()}


def moment(words: str, said: str) -> float:
    """When a log says this, in seconds since the epoch."""
    found = re.search(words, said)
    assert found, said
    return datetime.fromisoformat(found[1]).timestamp()


@contextmanager
def opened(name: str) -> Iterator[OnRay | OnSlurm]:
    """The job, under way."""
    with tempfile.TemporaryDirectory() as folder:
        make_scenes(Path(folder) / "scenes")
        place = PLACES[name](Path(folder), Path(folder) / "scenes/train")
        try:
            wait_for(lambda: began(place, 1), place.log)
            yield place
        finally:
            place.down()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--on", default="ray,slurm", help="where (default: ray,slurm)")
    options.add_argument("--times", type=int, default=3, help="of each fault (default: 3)")
    wanted = options.parse_args()
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    RESULTS.parent.mkdir(exist_ok=True)
    for name in wanted.on.split(","):
        with opened(name) as place:
            faults = [fault for _ in range(wanted.times) for fault in place.faults()]
            for attempt, fault in enumerate(faults, start=1):
                line: dict[str, Any] = {"commit": found.stdout.strip(), "on": name, "fault": fault}
                line |= recover(place, attempt, fault) | {"load": os.getloadavg()[0], "time": round(time.time())}
                with RESULTS.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
