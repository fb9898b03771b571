"""Small training runs under the `deepspeed` launcher, into which faults are injected and which are started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.observed import ATTEMPT, FOLDER
from cluster.processes import send
from tests.conftest import ROOT, TINY, free_port

TOML = str(ROOT / "mvlm/configs/tiny.toml")
BATCH, STEPS, EVERY = 16, 48, 8
PATIENCE = 1200.0
"""Seconds to wait for anything that a run does, on a machine that is busy with other work too."""


@dataclass(frozen=True)
class Layout:
    ranks: int = 2
    stage: int = 1


@dataclass
class Run:
    """A run's folder, its files and the command that trains it; `folder` has nothing else in it.

    Args:
        disk: where the run folder itself is, if elsewhere.
    """

    folder: Path
    shards: Path
    steps: int = STEPS
    overrides: tuple[str, ...] = ()
    faults: dict[str, list[Any]] = field(default_factory=dict)
    disk: Path | None = None
    layout: Layout = Layout()

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.run = (self.disk or self.folder) / "run"
        self.attempts: list[Attempt] = []
        (self.folder / "faults.json").write_text(json.dumps(self.faults))

    @property
    def checkpoints(self) -> Path:
        return self.run / "checkpoints"

    def start(self) -> Attempt:
        """Give the command, which is the same each time except for the port."""
        self.attempts.append(Attempt(self, len(self.attempts)))
        return self.attempts[-1]

    def lay_out(self, ranks: int, stage: int) -> None:
        """Change the layout for all later attempts."""
        self.layout = Layout(ranks, stage)

    def command(self, port: int) -> list[str]:
        deepspeed = self.folder / f"zero{self.layout.stage}.json"
        deepspeed.write_text(json.dumps({"zero_optimization": {"stage": self.layout.stage}}))
        program = str(Path(sys.executable).parent / "deepspeed")
        launch = [program, "--num_accelerators", str(self.layout.ranks), "--master_port", str(port)]
        given = [f"data.train={self.shards}", f"run.dir={self.run}", f"train.steps={self.steps}"]
        given += [f"checkpoint.every={EVERY}", f"train.global_batch={BATCH}", *self.overrides]
        words = ["train", TOML, "--deepspeed_config", str(deepspeed), *TINY, *given]
        return [*launch, "--module", "benchmarks.faults.observed", *words]

    def metrics(self) -> list[dict[str, Any]]:
        """The complete lines of metrics.jsonl, in the order in which they were written.

        Raises:
            ValueError: a line other than the last is incomplete.
        """
        path = self.run / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def step(self) -> int:
        """The last logged step; 0 before the first."""
        lines = self.metrics()
        return lines[-1]["step"] if lines else 0

    def latest(self) -> str | None:
        path = self.checkpoints / "latest"
        return path.read_text() if path.exists() else None

    def stream(self, rank: int) -> list[dict[str, Any]]:
        """The recorded samples of each step of each attempt on that rank."""
        path = self.folder / f"stream-{rank}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Attempt:
    """The command of a run, started once: all of its processes, including those that outlive the launcher."""

    def __init__(self, run: Run, number: int) -> None:
        self.run, self.number = run, number
        self.began = time.time()
        self._seen = len(run.metrics())
        self._mark = f"{ATTEMPT}={run.folder} {number}"
        self._output = run.folder / f"attempt-{number}.log"
        surroundings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
        surroundings |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        surroundings |= {FOLDER: str(run.folder), ATTEMPT: self._mark.partition("=")[2]}
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                run.command(free_port()),
                cwd=ROOT,
                env=os.environ | surroundings,
                start_new_session=True,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def processes(self) -> dict[int, int | None]:
        """The ids of all living processes, and each one's rank, None for a launcher."""
        found: dict[int, int | None] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if self._mark.encode() in environment:  # a zombie's environment is empty
                rank = next((int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")), None)
                found[int(folder.name)] = rank
        return found

    def ranks(self) -> dict[int, int]:
        """Rank -> process id, of the living ranks."""
        found = sorted(self.processes().items(), reverse=True)  # a rank's own child processes have higher ids
        return {rank: pid for pid, rank in found if rank is not None}

    def steps(self) -> list[int]:
        """The steps that this attempt has logged."""
        return [line["step"] for line in self.run.metrics()[self._seen :]]

    def reaches(self, step: int) -> bool:
        """Wait until that step is logged; False if the attempt ends before."""
        return self.comes(lambda: self.run.step() >= step and bool(self.steps()))

    def comes(self, true: Any) -> bool:
        """Wait until `true()`; False if the attempt ends before."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            if self.process.poll() is not None:
                return bool(true())
            if time.monotonic() > deadline:
                raise TimeoutError(f"Waited {PATIENCE:.0f} s in vain for a running attempt:\n{self.output[-3000:]}")
            time.sleep(0.003)
        return True

    def end(self, patience: float = PATIENCE) -> int:
        """Wait until no process of it is alive, orphans included.

        Returns:
            The launcher's exit code; minus a signal's number.

        Raises:
            TimeoutError: a process was still alive; all are killed.
        """
        deadline = time.monotonic() + patience
        while self.process.poll() is None or self.processes():
            if time.monotonic() > deadline:
                left = self.processes()
                self.kill()
                raise TimeoutError(f"After {patience:.0f} s {left} were still alive:\n{self.output[-3000:]}")
            time.sleep(0.05)
        return self.process.returncode

    def kill(self) -> None:
        for pid in self.processes():
            send(pid, signal.SIGKILL)
        self.process.wait()


def make_shards(folder: Path, records: int = 300) -> Path:
    """Synthetic shards to train on, made unless they are there."""
    if not folder.exists():
        words = ["synth", "--task", "caption", "--count", str(records), "--seed", "3", "--shard-mb", "0.2"]
        command = [sys.executable, "-m", "data_tools", *words, "--out", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder
