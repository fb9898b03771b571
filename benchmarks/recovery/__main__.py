"""How long a training job stands still after a fault, and how much of that is the scheduler's part:

    python -m benchmarks.recovery [--on ray,slurm] [--times N]

A job with the tiny model trains on two nodes of a real Ray cluster and of a real SLURM cluster, whose nodes are network
namespaces of this machine, and suffers one fault after another. results/recovery.jsonl has, in seconds from the fault:
when the scheduler says that it has noticed, when it starts a replacement (SLURM holds a requeued job back), when the
next attempt begins, when it has made its first step, and when it passes the step that the run had reached.

The run folder is on a disk that the nodes share or, with --folders, on each node's own disk, for a model with
checkpoints of 300 MB: with "mirror" these are also in a bucket, on a server with S3's protocol on a separate node, and
with "copies" also in other nodes' memory.
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
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.kept import add_record, code_version, read_records
from benchmarks.pipeline.store import BUCKET, ObjectStore
from tests.cluster.ray_fixture import NODES, RayCluster, RayJob
from tests.cluster.slurm_fixture import SlurmCluster, SlurmJob, wait_for
from tests.conftest import make_scenes

RESULTS = Path(__file__).parent / "results/recovery.jsonl"
LARGE = [
    "model.vision_args={patch_size=16, embed_dim=512, depth=4, num_heads=8}",
    "model.text_args={hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, "
    "max_position_embeddings=64}",
]
OWN_FOLDERS = [*LARGE, "run.dir=/run/mvlm", f"checkpoint.mirror=s3://{BUCKET}/mirror"]
FOLDERS = {"shared": [], "mirror": OWN_FOLDERS, "copies": [*OWN_FOLDERS, "checkpoint.peers=1"]}
STEPS = 100_000  # more than are made
EVERY = 20  # steps between checkpoints
BEFORE = 32  # steps of each attempt until a fault: step 20's checkpoint has been copied by then


Deed = Callable[[str], object]
"""An action on a node."""


class OnRay:
    noticed = r'"asctime": "(\S+ \S+),\d+", .*RUNNING -> RESTARTING'
    """A pattern of the scheduler's log line, with its time."""
    starts = r'"asctime": "(\S+ \S+),\d+", .*RESTARTING -> SCHEDULING'

    def __init__(self, folder: Path, shards: Path) -> None:
        self.cluster = RayCluster(folder / "ray")
        self.cluster.up()
        for node in ("w1", "w2"):
            self.cluster.join(node)
        self.job = RayJob(self.cluster, folder, "recovery", shards)

    def faults(self) -> dict[str, tuple[Deed, Deed]]:
        """By name: the action that does the harm to a node, and the one that repairs it."""
        return {
            "worker killed": (self._kill_worker, lambda node: None),
            "node lost": (self.cluster.lose, self._boot),
            "node cut off": (self.cluster.cut, self._heal),
        }

    def _kill_worker(self, node: str) -> None:
        ranks = self.job.ranks(len(self.job.attempts()))
        worker = next(rank for rank in ranks if self.cluster.node_of(rank) == node).parent()
        assert worker
        worker.kill()

    def _boot(self, node: str) -> None:
        subprocess.run(["bash", NODES, "start", str(self.cluster.folder), node], check=True, stdout=subprocess.DEVNULL)
        self.cluster.join(node)

    def _heal(self, node: str) -> None:
        """Reconnect the node: its Ray is told that it counts as dead, and exits; then it joins again."""
        raylets = [each for each in psutil.process_iter(["name"]) if each.info["name"] == "raylet"]
        [raylet] = [each for each in raylets if self.cluster.node_of(each) == node]
        self.cluster.heal(node)
        raylet.wait(timeout=120)
        self.cluster.join(node)

    def victim(self, attempt: int) -> str:
        return self.job.rank_beside_the_head(attempt)[0]

    def log(self) -> str:
        logs = self.cluster.folder.glob("nodes/head/tmp-ray/session_2*/logs/train/ray-train-sys-controller*.log")
        return "\n".join(path.read_text() for path in logs)


class OnSlurm:
    noticed = r"\[([\d-]+T[\d:]+)(?:\.\d+)?\] .*[Rr]equeue.*due to failure of node"
    starts = r"\[([\d-]+T[\d:]+)(?:\.\d+)?\] .*(Allocate|Started) JobId="

    def __init__(self, folder: Path, shards: Path) -> None:
        self.cluster = SlurmCluster(folder / "slurm")
        self.cluster.folder.mkdir()
        self.cluster.up()
        self.job = SlurmJob(self.cluster, folder / "recovery", shards)

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


PLACES: dict[str, type[OnRay | OnSlurm]] = {"ray": OnRay, "slurm": OnSlurm}


def began(place: OnRay | OnSlurm, attempt: int) -> float | None:
    """When an attempt began, if it has."""
    folder = place.job.logs / f"attempt-{attempt:03d}"
    return folder.stat().st_ctime if folder.exists() else None


def steps(place: OnRay | OnSlurm, attempt: int) -> list[int]:
    """The steps of an attempt so far, from its first rank's log."""
    log = place.job.logs / f"attempt-{attempt:03d}/rank-00000.log"
    return [int(step) for step in re.findall(r"^step (\d+)", log.read_text(), re.MULTILINE)] if log.exists() else []


def recover(place: OnRay | OnSlurm, attempt: int, name: str) -> dict[str, Any]:
    """Inject one fault, and measure the seconds from it; the next attempt keeps running."""
    do, mend = place.faults()[name]
    wait_for(lambda: len(steps(place, attempt)) >= BEFORE, place.log)
    node, told = place.victim(attempt), len(place.log())
    at = time.time()
    do(node)
    wait_for(lambda: began(place, attempt + 1), place.log)
    started, reached = began(place, attempt + 1), steps(place, attempt)[-1]
    assert started
    wait_for(lambda: steps(place, attempt + 1), place.log)
    first = time.time()
    wait_for(lambda: steps(place, attempt + 1)[-1] > reached, place.log)
    passed = time.time()
    mend(node)
    said = place.log()[told:]
    moments = {"noticed": moment(place.noticed, said), "starts": moment(place.starts, said)}
    moments |= {"began": started, "first": first, "passed": passed}
    line: dict[str, Any] = {name: round(when - at, 1) for name, when in moments.items()}
    line["repeated"] = reached + 1 - steps(place, attempt + 1)[0]
    log = (place.job.logs / f"attempt-{attempt + 1:03d}/rank-00000.log").read_text()
    if brought := re.search(r"step_\S+ was (fetched into|made whole from) .* in ([\d.]+) s", log):
        line |= {"checkpoint": brought[1], "checkpoint_s": float(brought[2])}
    return line


def moment(words: str, said: str) -> float:
    """The time of the first log line that matches, in seconds since the epoch."""
    found = re.search(words, said)
    assert found, said
    return datetime.fromisoformat(found[1]).timestamp()


@contextmanager
def opened(name: str, folders: str) -> Iterator[OnRay | OnSlurm]:
    """Start the job on a new cluster; yields once it runs."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        make_scenes(Path(folder) / "scenes")
        place = PLACES[name](Path(folder), Path(folder) / "scenes/train")
        stack.callback(place.cluster.down)
        words = ["job.nodes=2", "job.requeue=1000", f"train.steps={STEPS}", f"checkpoint.every={EVERY}"]
        if folders != "shared":
            store = ObjectStore(place.cluster.folder)
            stack.enter_context(store.holding(Path(folder) / "store"))
            words += [f"job.environment.{variable}={value}" for variable, value in store.variables.items()]
        place.job.submit(*words, *FOLDERS[folders])
        wait_for(lambda: began(place, 1), place.log)
        yield place


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: medians, with minimum and maximum, of each fault's seconds."""
    rows = [
        "| on | run folders | fault | times | noticed | started again | passed | ours | until its first step | "
        "bringing the checkpoint |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for on, folders, fault in dict.fromkeys((line["on"], line["folders"], line["fault"]) for line in lines):
        own = [line for line in lines if (line["on"], line["folders"], line["fault"]) == (on, folders, fault)]
        spans = [
            [line["noticed"] for line in own],
            [line["starts"] for line in own],
            [line["passed"] for line in own],
            [line["passed"] - line["starts"] for line in own],
            [line["first"] - line["starts"] for line in own],
            [line["checkpoint_s"] for line in own if "checkpoint_s" in line],
        ]
        cells = [f"{median(span):.1f} ({min(span):.1f} to {max(span):.1f})" if span else "" for span in spans]
        rows.append(f"| {on} | {folders} | {fault} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--on", default="ray,slurm", help="clusters (default: ray,slurm)")
    options.add_argument("--folders", choices=FOLDERS, default="shared", help="see above (default: shared)")
    options.add_argument("--times", type=int, default=3, help="times to inject each fault (default: 3)")
    options.add_argument("--table", action="store_true", help="only print the table of results")
    wanted = options.parse_args()
    if wanted.table:
        print(table(read_records(RESULTS)))
        return
    for name in wanted.on.split(","):
        with opened(name, wanted.folders) as place:
            faults = list(place.faults()) if wanted.folders == "shared" else ["node lost"]
            for attempt, fault in enumerate(faults * wanted.times, start=1):
                line = {"commit": code_version(), "on": name, "folders": wanted.folders, "fault": fault}
                line |= recover(place, attempt, fault) | {"load": os.getloadavg()[0], "time": round(time.time())}
                add_record(RESULTS, line)
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
