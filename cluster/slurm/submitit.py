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

from cluster import processes
from cluster.check import check_run
from cluster.environment import inherited, python
from cluster.job import Job, JobError, check_files, load_job, refuse, run_folder, split_overrides
from cluster.logs import attempt_folder, attempt_numbers
from cluster.record import newest_step
from cluster.slurm import launchers as slurm_launchers
from cluster.slurm.script import check_options
from cluster.watch import DONE, FINAL, FRUITLESS, MISTAKE, USAGE, describe_stuck

if TYPE_CHECKING:
    import submitit

CANNOT = ("min_nodes", "container", "launcher", "ray_address", "sweep")
POLL_SECONDS = 0.5
STEP = "step"  # in an attempt's folder: the newest that the run had made when it ended


class TrainJob:
    """A run, as submitit starts it: a task a rank.

    Args:
        job_file: path of the job TOML, from the folder in which everything is submitted.
        overrides: `key=value` words, those of the job with `job.` before them.

    Raises:
        JobError: the job file will not do for this.
    """

    def __init__(self, job_file: str | Path, overrides: Iterable[str] = ()) -> None:
        self._arguments = (job_file, list(overrides))
        own, self.words = split_overrides(overrides)
        self.job = load_job(job_file, own)
        check_files(self.job)
        refuse(self.job, "submitit", CANNOT)
        check_options(self.job)
        self.first_attempt = 1 + max(attempt_numbers(self.job.log_folder), default=0)
        self._pid = 0  # of this task's rank

    def executor(self, folder: str | Path) -> submitit.AutoExecutor:
        """An executor with the job's nodes, limits and accounts.

        Args:
            folder: for what submitit keeps; all nodes must see it.

        Raises:
            JobError: the run cannot begin, or the job has no time limit, without which submitit sets one of its own.
        """
        import submitit

        job = self.job
        if job.time_seconds is None:
            raise JobError("job.time is missing, and submitit allows five minutes then: set job.time.")
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
            The rank's exit code. 75 is another rank's to answer for, or is followed by a requeue.

        Raises:
            JobError: the rank ended with a mistake, or crashed once more than job.requeue allows.
        """
        import submitit

        here = submitit.JobEnvironment()
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        attempt = attempt_folder(self.job.log_folder, self.first_attempt + restarts)
        attempt.mkdir(parents=True, exist_ok=True)
        rank = subprocess.Popen(self._command(attempt), env=_environment(self.job, here, restarts), preexec_fn=_deaf)
        self._pid = rank.pid
        while rank.poll() is None:  # no wait(): checkpoint() interrupts this, and must not find its lock taken
            time.sleep(POLL_SECONDS)
        code = rank.returncode
        if code not in FINAL and here.global_rank == 0 and self._is_stuck(restarts):
            raise JobError(f"Rank 0 ended with exit code {code}, and {describe_stuck(self._newest_step())}.")
        if code in (MISTAKE, USAGE) or (code != DONE and restarts >= self.job.requeue):
            raise JobError(f"Rank {here.global_rank} ended with exit code {code}: its log is in {attempt}.")
        if code != DONE and here.global_rank == 0:
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
        again = TrainJob(*self._arguments)
        again.first_attempt = self.first_attempt
        return submitit.helpers.DelayedSubmission(again)

    def _newest_step(self) -> int:
        return newest_step(run_folder(self.job, self.words))

    def _is_stuck(self, restarts: int) -> bool:
        """Whether this restart is one of several in a row without a new step; notes how far the run has come."""
        own, before = (self.first_attempt + restarts - ago for ago in (0, FRUITLESS))
        (attempt_folder(self.job.log_folder, own) / STEP).write_text(str(self._newest_step()), encoding="utf-8")
        earlier = attempt_folder(self.job.log_folder, before) / STEP
        return restarts >= FRUITLESS and earlier.exists() and self._newest_step() <= int(earlier.read_text())

    def _command(self, attempt: Path) -> list[str]:
        interpreter, job = str(python(self.job)), self.job
        train = [interpreter, "-m", "mvlm", "train", job.run, "--deepspeed_config", job.deepspeed, *self.words]
        return [interpreter, "-m", "cluster.rank", str(attempt), *train]


def _options(job: Job) -> dict[str, str | int | bool]:
    """Options of sbatch for which submitit has no name, or one of its own making."""
    given: dict[str, str | int | bool] = {"requeue": True} if job.requeue else {"no-requeue": True}
    given |= {name: value for name in ("partition", "account", "qos") if (value := getattr(job, name))}
    if job.cpus_per_process:
        given["cpus-per-task"] = job.cpus_per_process
    if job.gpus_per_node:
        by_gres = job.gpu_request == "gres"
        given["gres" if by_gres else "gpus-per-node"] = f"gpu:{job.gpus_per_node}" if by_gres else job.gpus_per_node
    for option in job.sbatch:
        name, equals, value = option.removeprefix("--").partition("=")
        given[name] = value if equals else True
    return given


def _environment(job: Job, here: submitit.JobEnvironment, restarts: int) -> dict[str, str]:
    """Without another launcher's ranks, and without SLURM's limit: submitit's signal comes before it, and a rank must
    not be the first to stop."""
    own = inherited()
    own.pop("SLURM_JOB_END_TIME", None)
    port = 15000 + (int(here.raw_job_id) * 7 + restarts * 131) % 15000
    return own | {"MASTER_ADDR": here.hostnames[0], "MASTER_PORT": str(port)} | slurm_launchers.exports(job)


def _deaf() -> None:
    """submitit's signal goes to all processes of a task, and would end those that it is not meant for."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
