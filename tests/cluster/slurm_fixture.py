"""A SLURM cluster of five nodes on this machine, and jobs of the tiny model on it."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import psutil
import pytest

from cluster.__main__ import main
from cluster.job import load_job, split_overrides
from cluster.slurm import backend
from tests.conftest import ROOT, TINY

HERE = Path(__file__).parent
PACKAGES = ("slurmctld", "slurmd", "sbatch", "unshare", "nsenter", "ip", "sshd", "pdsh")
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
GPUS = 2
PATIENCE = 300.0  # seconds, on a busy machine
COMMAND_SECONDS = 1800.0  # limit of a command: a submission checks the runs of a pipeline one by one
JOB = """[job]
name = "{name}"
run = "mvlm/configs/tiny.toml"
deepspeed = "ds_configs/cpu.json"
logs = '''{folder}/logs'''
environment = {{ OMP_NUM_THREADS = "1" }}
"""


class SlurmCluster:
    """Nodes n1 to n5, of which SLURM prefers the lower, and a controller."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run a command on the controller."""
        return self._script("slurm_cluster.sh", "on", self.folder, *words)

    def cluster(self, *words: object) -> str:
        """The output of `python -m cluster` on the controller."""
        done = self.on(sys.executable, "-m", "cluster", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def in_this_process(self, *words: object) -> str:
        """The same without starting an interpreter; `logs`, which writes to a file descriptor, needs `cluster`."""
        with self.at_hand(), redirect_stdout(StringIO()) as printed:
            assert main([str(word) for word in words]) == 0
        return printed.getvalue()

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """In the project's root, with SLURM's commands as on the controller."""
        folder = self.folder / "commands"
        folder.mkdir(exist_ok=True)
        for name in ("sbatch", "squeue", "scancel"):
            words = [str(HERE / "slurm_cluster.sh"), "on", str(self.folder), shutil.which(name) or name]
            (folder / name).write_text(f'#!/bin/sh\nPATH={shlex.quote(PATH)} exec {shlex.join(words)} "$@"\n')
            (folder / name).chmod(0o755)
        with pytest.MonkeyPatch.context() as patch, chdir(ROOT):
            patch.setenv("PATH", f"{folder}:{PATH}")
            yield

    def node(self, verb: str, node: str) -> None:
        """Cut, heal or kill a node."""
        assert self._script("nodes.sh", verb, self.folder, node).returncode == 0

    def boot(self, node: str) -> None:
        assert self._script("slurm_cluster.sh", "boot", self.folder, node).returncode == 0

    def up(self) -> None:
        done = self._script("slurm_cluster.sh", "up", self.folder, 5, GPUS)
        assert done.returncode == 0, done.stderr

    def down(self) -> None:
        self._script("slurm_cluster.sh", "down", self.folder)

    def _script(self, name: str, *words: object) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PATH": PATH}
        command = [str(HERE / name), *map(str, words)]
        output = self.folder / "output"  # daemons inherit it, so it must be no pipe
        with open(output, "w") as out, open(f"{output}.err", "w") as err:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=out, stderr=err, timeout=COMMAND_SECONDS
            ).returncode
        return subprocess.CompletedProcess(command, code, output.read_text(), Path(f"{output}.err").read_text())


class SlurmJob:
    """One job, its logs in `folder`/logs and its run in `folder`/run."""

    def __init__(self, slurm: SlurmCluster, folder: Path, shards: Path, tail: str = "") -> None:
        folder.mkdir(parents=True)
        self.slurm, self.folder, self.logs, self.run = slurm, folder, folder / "logs", folder / "run"
        self.file = folder / "job.toml"
        self.file.write_text(JOB.format(name=folder.name, folder=folder) + tail)
        self.mark = f"run.dir={self.run}"  # only in the command lines of its ranks
        self.words = [self.mark, f"data.train={shards}", "checkpoint.every=20", *TINY]

    def trial(self, number: int) -> SlurmJob:
        """A run of a sweep."""
        trial = copy.copy(self)
        trial.logs, trial.run = self.logs / f"{number:03d}", self.run / f"{number:03d}"
        trial.mark = f'run.dir="{trial.run}"'
        return trial

    def submit(self, *words: str) -> str:
        """The output of `python -m cluster submit`, without the check of the run, which takes five seconds."""
        own, others = split_overrides([*self.words, *words])
        with self.slurm.at_hand(), redirect_stdout(StringIO()) as printed:
            assert backend.submit(load_job(self.file, own), others) == 0
        return printed.getvalue()

    @property
    def id(self) -> str:
        return json.loads((self.logs / "job.json").read_text())["job_id"]

    def attempt(self, number: int) -> Path:
        return self.logs / f"attempt-{number:03d}"

    def exit_codes(self) -> list[str | None]:
        """Of each attempt; None if nobody was left to record it."""
        codes = (folder / "exit_code" for folder in sorted(self.logs.glob("attempt-*")))
        return [path.read_text().strip() if path.exists() else None for path in codes]

    def steps(self, number: int) -> list[int]:
        """The steps of an attempt, by the log of its first rank."""
        log = self.attempt(number) / "rank-00000.log"
        return [int(step) for step in re.findall(r"^step (\d+)", log.read_text(), re.MULTILINE)] if log.exists() else []

    def metrics(self) -> list[tuple[int, float]]:
        path = self.run / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [(line["step"], line["loss"]) for line in lines]

    def make_steps(self, number: int, more_than: int = 0) -> int:
        """Wait until an attempt has passed a step; the step it has reached."""
        wait_for(lambda: max(self.steps(number), default=0) > more_than, lambda: self.said(number))
        return max(self.steps(number))

    def end(self, number: int) -> str:
        """Wait until an attempt ends; its exit code."""
        wait_for((self.attempt(number) / "exit_code").exists, lambda: self.said(number))
        return (self.attempt(number) / "exit_code").read_text().strip()

    def said(self, number: int) -> str:
        logs = sorted([*self.logs.glob("slurm-*.log"), *self.attempt(number).glob("*.log")])
        logs += [*self.slurm.folder.glob("slurm/log/slurm*.log")]  # why a node was drained, for one
        asked = [self.slurm.on(*words.split()).stdout for words in ("sinfo -l", "sinfo -R", "squeue -l")]
        return "\n".join([*(f"{path}: {path.read_text()[-3000:]}" for path in logs), *asked])

    def ranks(self, node: str) -> list[psutil.Process]:
        """Living `mvlm` processes of this job on a node."""
        found = []
        for process in psutil.process_iter():
            try:
                words, here = process.cmdline(), process.environ().get("SLURMD_NODENAME") == node
                if here and self.mark in words and "cluster.rank" not in words:
                    found.append(process)
            except psutil.Error:
                continue
        return found


class StepClock:
    """Records when a run reaches each step."""

    def __init__(self, job: SlurmJob) -> None:
        self._job, self._noted = job, [(time.monotonic(), 0)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._note, daemon=True)

    def __enter__(self) -> StepClock:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _note(self) -> None:
        while not self._over.wait(0.5):
            step = max((step for step, _ in self._job.metrics()), default=0)
            if step > self._noted[-1][1]:
                self._noted.append((time.monotonic(), step))

    def passed(self, reached: int) -> float:
        """When the run passed a step."""
        return next(when for when, step in self._noted if step > reached)


def wait_for(condition: Callable[[], object], explain: Callable[[], str] = str) -> None:
    """Poll at most a fifth of the time, since asking SLURM takes CPU from what is waited for."""
    deadline, asked = time.monotonic() + PATIENCE, time.monotonic()
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(min(1.0, max(0.05, 4 * (time.monotonic() - asked))))
        asked = time.monotonic()


def why_not() -> str:
    """Why this machine cannot have a cluster; "" if it can."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in PACKAGES if not shutil.which(name, path=path)]
    if missing:
        return f"needs {', '.join(missing)}"
    done = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"], capture_output=True)
    return "needs root and namespaces" if os.geteuid() or done.returncode else ""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if reason := why_not():
        pytest.skip(f"SLURM {reason}")
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
