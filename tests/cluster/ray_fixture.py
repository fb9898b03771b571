"""A real Ray cluster of three nodes in network namespaces, jobs on it, and the faults they can meet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT, TINY

SCRIPT = str(ROOT / "tests/cluster/ray_cluster.sh")
NODES = str(ROOT / "tests/cluster/nodes.sh")
JOB = """[job]
name = "{name}"
run = "mvlm/configs/tiny.toml"
deepspeed = "ds_configs/cpu.json"
nodes = 2
processes_per_node = 1
cpus_per_process = 2
logs = "{logs}"
environment = {{ OMP_NUM_THREADS = "1" }}
"""
STEPS = 100
SETTINGS = [*TINY, "optim.lr=1e-4", "optim.encoder_lr=1e-4", f"train.steps={STEPS}", "checkpoint.every=20"]
FETCH = """
import sys
from urllib.request import Request, urlopen
print(urlopen(Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]}), timeout=20).read().decode())
"""
LOSSES = ("loss", "image", "text", "itc", "itm", "grad_norm")


def cannot_run_here() -> str | None:
    """Why this machine cannot have a cluster, or None if it can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    missing = [name for name in ("unshare", "nsenter", "ip") if not shutil.which(name)]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install iproute2 util-linux"
    if subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True).returncode:
        return "the kernel allows no new namespaces"
    return None


class RayCluster:
    """Nodes "head", "w1" and "w2"; Ray runs on the head, and on the others once they have joined.

    Args:
        cpus: of each node, for Ray to assign.
        redis: whether Ray keeps its state in a Redis, which gets a node of its own.
    """

    def __init__(self, folder: Path, cpus: int = 2, redis: bool = False) -> None:
        self.folder, self._cpus = folder, str(cpus)
        self._more = ["redis"] if redis else []

    def up(self) -> None:
        self._script("up", "2", self._cpus, *self._more)

    def _script(self, verb: str, *words: str, script: str = SCRIPT) -> None:
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        command = ["bash", script, verb, str(self.folder), *words]
        subprocess.run(command, env=environment, check=True, timeout=600, stdout=subprocess.DEVNULL)

    def join(self, node: str) -> None:
        self._script("worker", node, self._cpus)

    def lose(self, node: str) -> None:
        """A power failure: whatever only the node had is gone."""
        self._script("kill", node, script=NODES)

    def start_head(self) -> None:
        """Boot the lost head again, and start Ray there."""
        self._script("start", "head", script=NODES)
        self._script("head", self._cpus)

    def cut(self, node: str) -> None:
        self._script("cut", node, script=NODES)

    def heal(self, node: str) -> None:
        self._script("heal", node, script=NODES)

    def down(self) -> None:
        self._script("down")

    def on_head(self, *words: object, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
        """Run `python -m ...` on the head node, as a user who has logged in there does."""
        return self.python("-m", *words, timeout=timeout)

    def python(self, *words: object, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
        command = ["bash", SCRIPT, "on", str(self.folder), "head", sys.executable, *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)

    def address(self, node: str) -> str:
        hosts = dict(reversed(line.split()) for line in (self.folder / "hosts").read_text().splitlines())
        return hosts[node]

    def node_of(self, process: psutil.Process) -> str:
        """The node that a process runs on."""
        space = os.readlink(f"/proc/{process.pid}/ns/net")
        for path in (self.folder / "nodes").glob("*/pid"):
            if os.readlink(f"/proc/{path.read_text().strip()}/ns/net") == space:
                return path.parent.name
        raise LookupError(f"{process} is on no node")

    def fetch(self, url: str) -> str:
        """The answer of a server of the cluster to a request from the head node with the cluster's token."""
        token = (self.folder / "ray_token").read_text()
        done = self.python("-c", FETCH, url, token, timeout=60)
        done.check_returncode()
        return done.stdout

    def metrics(self) -> str:
        """What Prometheus would scrape from the targets that Ray lists for it."""
        sessions = (self.folder / "nodes/head/tmp-ray").glob("session_2*")
        found = next(sessions) / "prom_metrics_service_discovery.json"
        targets = [target for group in json.loads(found.read_text()) for target in group["targets"]]
        return "\n".join(self.fetch(f"http://{target}/metrics") for target in sorted(set(targets)))


class RayJob:
    """A job, submitted on the head node."""

    def __init__(self, cluster: RayCluster, folder: Path, name: str, shards: Path, extra: str = "") -> None:
        self.cluster, self.file = cluster, folder / f"{name}.toml"
        self.run, self.logs = folder / name / "run", folder / name / "logs"
        self.file.write_text(JOB.format(name=name, logs=self.logs) + extra)
        self.words = [f"run.dir={self.run}", f"data.train={shards}", *SETTINGS]

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.cluster.on_head("cluster", "submit", self.file, "--on", "ray", *self.words, *words)

    def ask(self, *words: object) -> subprocess.CompletedProcess[str]:
        """`python -m cluster COMMAND... JOB.toml`."""
        return self.cluster.on_head("cluster", *words, self.file)

    def attempts(self) -> list[dict[str, Any]]:
        return json.loads((self.logs / "job.json").read_text())["attempts"]

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that are about training."""
        path = self.run / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [line for line in lines if "loss" in line]

    def step(self) -> int:
        lines = self.lines()
        return lines[-1]["step"] if lines else 0

    def losses(self) -> dict[int, tuple[float, ...]]:
        """Those of each step, as last written."""
        return {line["step"]: tuple(line[name] for name in LOSSES) for line in self.lines()}

    def repeated(self) -> int:
        """How many steps were repeated."""
        return len(self.lines()) - len(self.losses())

    def ranks(self, attempt: int) -> list[psutil.Process]:
        """The processes of an attempt's ranks, in order."""
        folder, found = self.logs / f"attempt-{attempt:03d}", {}
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            log, above = environment.get("MVLM_JOB_LOG", ""), process.parent()
            if log.startswith(f"{folder}/") and above and "ray::" in " ".join(above.cmdline()):
                found[int(environment["RANK"])] = process
        return [found[rank] for rank in sorted(found)]

    @contextmanager
    def paused(self, attempt: int) -> Iterator[None]:
        """Suspends the ranks of an attempt, which would otherwise end before what happens meanwhile."""
        ranks = self.ranks(attempt)
        for rank in ranks:
            rank.suspend()
        try:
            yield
        finally:
            for rank in ranks:
                rank.resume()

    def wait_for_log(self, attempt: int, words: str) -> None:
        """Wait until the launcher's log of an attempt has these words."""
        log = self.logs / f"attempt-{attempt:03d}/launcher.log"
        self.wait(words, lambda: words in log.read_text())

    def rank_beside_the_head(self, attempt: int) -> tuple[str, psutil.Process]:
        """A node that may be lost, and its rank; the driver and Ray's own state are on the head."""
        placed = [(self.cluster.node_of(rank), rank) for rank in self.ranks(attempt)]
        return next((node, rank) for node, rank in placed if node != "head")

    def wait(self, what: str, reached: Callable[[], bool], seconds: float = 900) -> None:
        """Poll at most a fifth of the time, since a poll takes CPU from what it waits for.

        Raises:
            TimeoutError: it took longer than that.
        """
        deadline, asked = time.monotonic() + seconds, time.monotonic()
        while not reached():
            if time.monotonic() > deadline:
                log = self.ask("logs").stdout[-1500:]
                raise TimeoutError(f"{self.file.stem} did not reach {what!r} in {seconds} s\n{log}")
            time.sleep(min(1.0, max(0.1, 4 * (time.monotonic() - asked))))
            asked = time.monotonic()

    def wait_for_progress(self, attempt: int, steps: int = 5) -> None:
        """Wait until an attempt has made some steps of its own."""
        self.wait(f"attempt {attempt}", lambda: len(self.attempts()) >= attempt)
        before = len(self.lines())
        self.wait(f"{steps} steps of attempt {attempt}", lambda: len(self.lines()) >= before + steps)

    def wait_for_exit(self, code: int = 0) -> None:
        """Wait until the last attempt has ended with this code."""
        self.wait(f"exit code {code}", lambda: [one["exit_code"] for one in self.attempts()][-1:] == [code])

    def seconds_lost(self, fault: Callable[[], None]) -> float:
        """The time from a fault until the next attempt passes the step that was reached.

        Args:
            fault: ends the current attempt.
        """
        attempt, began = len(self.attempts()) + 1, time.monotonic()
        fault()
        self.wait(f"attempt {attempt}", lambda: len(self.attempts()) >= attempt)
        reached = max(self.losses())
        self.wait(f"step {reached + 1} in attempt {attempt}", lambda: self.step() > reached)
        return time.monotonic() - began


@pytest.fixture(scope="module", name="cluster")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    cluster = RayCluster(tmp_path_factory.mktemp("ray"))
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="module", name="on_ray")
def command_on_ray(cluster: RayCluster) -> Callable[..., str]:
    """`python -m cluster` on the head of two nodes; what it prints."""
    cluster.join("w1")

    def run(*words: object) -> str:
        done = cluster.on_head("cluster", *words)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    return run


@pytest.fixture(scope="module", name="jobs")
def ray_jobs(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Callable[..., RayJob]:
    """make(name, more of the job file) -> a job."""
    folder = tmp_path_factory.mktemp("jobs")
    return lambda name, extra="": RayJob(cluster, folder, name, scenes / "train", extra)
