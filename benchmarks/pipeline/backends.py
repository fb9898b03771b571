"""The back-ends that the pipeline runs on, and their faults: this machine, and clusters of SLURM and Ray with several
nodes in network namespaces, as in the tests."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks.pipeline.workplace import FILE, LOGS
from cluster.pipeline.submission import FILE as SUBMISSION
from cluster.processes import MARK
from tests.cluster.ray_fixture import SCRIPT as RAY_SCRIPT
from tests.cluster.ray_fixture import RayCluster
from tests.cluster.slurm_fixture import SlurmCluster
from tests.conftest import ROOT

CUT_SECONDS = 8.0  # for which a node is out of reach
DOWN_SECONDS = 5.0  # for which a controller is down
FULL_SECONDS = 20.0  # for which a disk is full
PYTHON = sys.executable


class Backend(Protocol):
    """Where the pipeline runs.

    Attributes:
        faults: by name; each is given the step to hit, and returns when the fault is over.
    """

    name: str
    faults: dict[str, Callable[[str], None]]

    @property
    def site(self) -> Path | None:
        """The folder of its nodes; None if it has none."""

    def up(self) -> None:
        """Boot the nodes; the caller calls `down`, even if this fails."""

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m cluster ...` to its end, where a user would."""

    def submit(self) -> None:
        """Submit the pipeline; returns once it has started, or has ended."""

    def busy(self) -> bool:
        """Whether processes are seen to run, so that the status need not be asked for."""

    def down(self) -> None:
        """End everything that still runs."""


class Local:
    """This machine, whose driver stays in the foreground."""

    name = "local"
    site = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults = {"driver": self._kill_driver, "node": self._kill_all, "disk": lambda _: fill(folder)}
        self._driver: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        """Nothing to do: this machine is up."""

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [PYTHON, "-m", "cluster", *words]
        return subprocess.run(command, cwd=self.folder, env=_environment(), capture_output=True, text=True)

    def submit(self) -> None:
        if self._driver:
            self._driver.wait()
        command = [PYTHON, "-m", "cluster", "submit", FILE, "--on", self.name]
        with open(self.folder / "submit.log", "ab") as log:
            self._driver = subprocess.Popen(
                command, cwd=self.folder, env=_environment(), stdout=log, stderr=log, start_new_session=True
            )
        while not (self.folder / LOGS / SUBMISSION).exists():
            if self._driver.poll():
                raise RuntimeError((self.folder / "submit.log").read_text())
            time.sleep(0.2)

    def busy(self) -> bool:
        return bool(self._driver and self._driver.poll() is None) or bool(marked(self.folder))

    def down(self) -> None:
        self._kill_all("")

    def _kill_driver(self, step: str) -> None:
        assert self._driver
        self._driver.kill()
        self._driver.wait()

    def _kill_all(self, step: str) -> None:
        """Kill what the loss of this machine would end: driver, steps and ranks."""
        if self._driver:
            self._kill_driver(step)
        for process in marked(self.folder):
            process.kill()


class OnCluster:
    """What SLURM and Ray share: `submit` returns, and the cluster does the rest."""

    name = ""

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        raise NotImplementedError

    def busy(self) -> bool:
        return False

    def submit(self) -> None:
        done = self.run("submit", FILE, "--on", self.name)
        if done.returncode:
            raise RuntimeError(done.stderr)


class Slurm(OnCluster):
    """A controller and five nodes."""

    name = "slurm"

    def __init__(self, folder: Path, site: Path) -> None:
        self.folder, self.site = folder, site
        site.mkdir(parents=True, exist_ok=True)
        self._cluster = SlurmCluster(site)
        self.faults = {
            "node": self._lose_node,
            "driver": self._kill_step,
            "controller": self._lose_controller,
            "link": self._cut,
            "disk": lambda _: fill(folder),
        }

    def up(self) -> None:
        self._cluster.up()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._cluster.on("bash", "-c", _within(self.folder, words))

    def busy(self) -> bool:
        return bool(marked(self.folder))  # the queue knows of them too

    def down(self) -> None:
        self._cluster.down()

    def _node_of(self, step: str) -> str:
        """The first node that the step has."""
        entries = self._cluster.on("squeue", "--noheader", "--states=RUNNING", "--format=%j %B").stdout.splitlines()
        return next((line.split()[1] for line in entries if line.startswith(f"faults-{step}")), "n1")

    def _lose_node(self, step: str) -> None:
        node = self._node_of(step)
        self._cluster.node("kill", node)
        time.sleep(30)  # by then SLURM has noticed
        self._cluster.boot(node)

    def _cut(self, step: str) -> None:
        node = self._node_of(step)
        self._cluster.node("cut", node)
        time.sleep(CUT_SECONDS)
        self._cluster.node("heal", node)

    def _kill_step(self, step: str) -> None:
        """Kill the batch script's process, which watches over the step on its node, and all that it started."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURM_JOB_NAME", "").startswith(f"faults-{step}"):
                    process.kill()
            except psutil.Error:
                continue

    def _lose_controller(self, step: str) -> None:
        self._cluster.on("pkill", "-9", "-x", "slurmctld")  # in the controller's own pid namespace
        time.sleep(DOWN_SECONDS)
        self._cluster.on("slurmctld")


class Ray(OnCluster):
    """A head and two workers."""

    name = "ray"

    def __init__(self, folder: Path, site: Path) -> None:
        self.folder, self.site = folder, site
        site.mkdir(parents=True, exist_ok=True)
        self._cluster = RayCluster(site)
        self.faults = {
            "node": self._lose_node,
            "driver": self._kill_driver,
            "head": self._lose_head,
            "link": self._cut,
            "disk": lambda _: fill(folder),
        }

    def up(self) -> None:
        self._cluster.up()
        for node in ("w1", "w2"):
            self._cluster.join(node)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", RAY_SCRIPT, "on", str(self.site), "head", "bash", "-c", _within(self.folder, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)

    def down(self) -> None:
        self._cluster.down()

    def _node_of(self, step: str) -> str:
        """The node that the step runs on; if that is the head, which also has the driver, an idle worker."""
        names = {self._cluster.node_of(process) for process in marked(self.folder, step)}
        return next((name for name in sorted(names) if name != "head"), "w1")

    def _lose_node(self, step: str) -> None:
        node = self._node_of(step)
        subprocess.run(["bash", _nodes(), "kill", str(self.site), node], check=True)
        time.sleep(10)
        subprocess.run(["bash", _nodes(), "start", str(self.site), node], check=True)
        self._cluster.join(node)

    def _cut(self, step: str) -> None:
        node = self._node_of(step)
        self._cluster.cut(node)
        time.sleep(CUT_SECONDS)
        self._cluster.heal(node)

    def _kill_driver(self, step: str) -> None:
        for process in psutil.process_iter():
            try:
                if {"cluster.pipeline.ray_driver", str(self.folder / LOGS)} <= set(process.cmdline()):
                    process.kill()
            except psutil.Error:
                continue

    def _lose_head(self, step: str) -> None:
        """End all of Ray, and start it again."""
        self.down()
        self.up()


def fill(folder: Path) -> None:
    """Fill the small disk that the folder is on, and free it again after a while."""
    assert folder.parent.is_mount(), f"{folder.parent} is not a separate disk, and no other may be filled"
    ballast = folder.parent / "ballast"
    try:
        with open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
    except OSError:
        time.sleep(FULL_SECONDS)
    finally:
        ballast.unlink(missing_ok=True)


def marked(folder: Path, step: str = "") -> list[psutil.Process]:
    """Processes of all steps or of one, found by the mark that `cluster` gives them, and those that watch over them."""
    found = []
    logs = str(folder / LOGS / step)
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            environment = process.environ()
            is_step = (
                logs in environment.get(MARK, "")
                or ("cluster.pipeline.step" in words and str(folder / LOGS) in words and step in ("", *words))
                or environment.get("SLURM_JOB_NAME", "").startswith(f"faults-{step}")  # ranks have no mark there
            )
            if is_step and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}"}


def _within(folder: Path, words: tuple[str, ...]) -> str:
    path = f"PYTHONPATH={shlex.quote(str(ROOT))}"
    return f"cd {shlex.quote(str(folder))} && {path} {shlex.join([PYTHON, '-m', 'cluster', *words])}"


def _nodes() -> str:
    return str(ROOT / "tests/cluster/nodes.sh")
