"""Training jobs for those who submit from Python: a checkpointable callable for submitit, and an executor for it.

job = TrainJob("job.toml", ["data.train=shards/train"])
job.executor("runs/mine/submitit").submit(job)
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mvlm.errors import ExitCode, UserError

from .. import processes, rank
from ..attempt import FINAL, describe_stuck, is_stuck
from ..check import check_run
from ..environment import inherited, python, read_references
from ..job import Job, check_files, load_job, refuse, run_folder, split_overrides
from ..logs import attempt_folder, next_attempt
from ..record import keep_files, newest_step
from . import launchers
from .options import further, placement

if TYPE_CHECKING:
    import submitit

CANNOT = ("min_nodes", "container", "launcher", "ray_address", "sweep")
SUBMITITS = ("nodes", "ntasks-per-node")
POLL_SECONDS = 0.5
STEP = "step"  # in an attempt's folder: the newest that the run had made when it ended


class TrainJob:
    """A run, as submitit starts it: one task per rank.

    Args:
        job_file: path of the job TOML, from the folder in which everything is submitted.
        overrides: `key=value` words, those of the job with `job.` before them.

    Raises:
        UserError: the job file will not do for this.
    """

    def __init__(self, job_file: str | Path, overrides: Iterable[str] = ()) -> None:
        own, self.words = split_overrides(overrides)
        self.job = load_job(job_file, own)
        check_files(self.job)
        refuse(self.job, "submitit", CANNOT)
        further(self.job)
        self.job.log_folder.mkdir(parents=True, exist_ok=True)
        keep_files(self.job)
        self.first_attempt = next_attempt(self.job.log_folder)
        self._pid = 0  # of this task's rank

    def executor(self, folder: str | Path) -> submitit.AutoExecutor:
        """An executor with the job's nodes, limits and accounts.

        Args:
            folder: for what submitit keeps; all nodes must see it.

        Raises:
            UserError: the run cannot begin, or the job has no time limit, without which submitit sets one of its own.
        """
        import submitit

        job = self.job
        if job.time_seconds is None:
            raise UserError("job.time is missing, and submitit allows five minutes then: set job.time.")
        check_run(job, self.words, here=False)
        kept = Path(folder)
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept.chmod(0o700)  # submitit keeps the job in it, whose environment may hold passwords
        executor = submitit.AutoExecutor(
            folder, cluster="slurm", slurm_max_num_timeout=job.requeue, slurm_python=str(python(job))
        )
        executor.update_parameters(
            name=job.name,
            nodes=job.nodes,
            tasks_per_node=job.ranks_per_node,
            timeout_min=math.ceil(job.time_seconds / 60),
            slurm_signal_delay_s=job.warning_seconds,
            slurm_setup=[shlex.join(["module", "load", *job.modules])] if job.modules else None,
            slurm_srun_args=["--wait=0", "--kill-on-bad-exit=0"],
            slurm_additional_parameters=_options(job),
        )
        return executor

    def __call__(self) -> int:
        """Train in one of the tasks that SLURM started: this task's rank, to its end.

        Returns:
            The rank's exit code. After 75, another rank answers for it, or a requeue follows.

        Raises:
            UserError: the rank ended with a mistake, or crashed once more than job.requeue allows.
        """
        import submitit

        here = submitit.JobEnvironment()
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        attempt = attempt_folder(self.job.log_folder, self.first_attempt + restarts)
        attempt.mkdir(parents=True, exist_ok=True)
        rank = subprocess.Popen(
            self._command(attempt), env=_environment(self.job, here, restarts), preexec_fn=_ignore_usr2
        )
        self._pid = rank.pid
        while rank.poll() is None:  # no wait(): checkpoint() interrupts this, and must not find its lock taken
            time.sleep(POLL_SECONDS)
        code = rank.returncode
        if code not in FINAL and here.global_rank == 0 and not self.job.command:
            steps = self._note_step(restarts)
            if is_stuck(steps):
                raise UserError(f"Rank 0 ended with exit code {code}, and {describe_stuck(max(steps))}.")
        if code in (ExitCode.MISTAKE, ExitCode.USAGE) or (code != ExitCode.DONE and restarts >= self.job.requeue):
            raise UserError(f"Rank {here.global_rank} ended with exit code {code}: its log is in {attempt}.")
        if code != ExitCode.DONE and here.global_rank == 0:
            os.kill(os.getpid(), getattr(signal, f"SIG{here.USR_SIG}"))  # submitit then calls checkpoint and requeues
        return code

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Have the ranks save and end; submitit calls this in the first of them, before it requeues the job."""
        import submitit

        started = processes.start_time(self._pid)
        if started:
            processes.send(self._pid, signal.SIGTERM)
        while started and processes.start_time(self._pid) == started:
            time.sleep(POLL_SECONDS)
        return submitit.helpers.DelayedSubmission(self)

    def _note_step(self, restarts: int) -> list[int]:
        """How far the run has come, after this attempt and those before it."""
        folders = [attempt_folder(self.job.log_folder, self.first_attempt + number) for number in range(restarts + 1)]
        (folders[-1] / STEP).write_text(str(newest_step(run_folder(self.job, self.words))), encoding="utf-8")
        return [int((folder / STEP).read_text()) for folder in folders if (folder / STEP).exists()]

    def _command(self, attempt: Path) -> list[str]:
        interpreter = str(python(self.job))
        train = [interpreter, "-m", "mvlm", *self.job.words(self.words)]
        return [interpreter, "-m", rank.__name__, str(attempt), *train]


def _options(job: Job) -> dict[str, str | bool]:
    """Options of sbatch for which submitit has no name, or one of its own."""
    asked = {name: value for name, value in placement(job).items() if name not in SUBMITITS} | further(job)
    return {"requeue" if job.requeue else "no-requeue": True} | {name: value or True for name, value in asked.items()}


def _environment(job: Job, here: submitit.JobEnvironment, restarts: int) -> dict[str, str]:
    """A rank's variables, without another launcher's, and without SLURM's limit: submitit's signal comes before it, and
    a rank must not be the first to stop."""
    own = inherited()
    own.pop("SLURM_JOB_END_TIME", None)
    port = 15000 + (int(here.raw_job_id) * 7 + restarts * 131) % 15000
    return (
        own | {"MASTER_ADDR": here.hostnames[0], "MASTER_PORT": str(port)} | read_references(launchers.variables(job))
    )


def _ignore_usr2() -> None:
    """Ignore submitit's signal, which goes to all processes of a task and would end those that it is not meant for."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
