"""Jobs that make shards, or score their rows: the tables [shard] and [score], which take the place of [job].

On SLURM they are an array of tasks, each of which does its share of the parts, and a job after it that joins them; on
Ray, one job whose tasks Ray places; on this machine, one command.
"""

from __future__ import annotations

import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from mvlm.config.shipped import find_file, package
from mvlm.config.toml import apply_override, build, read_tables
from mvlm.errors import Mistakes, UserError
from mvlm.runtime.launch import end_with_parent

from .attempt import shell_code
from .command_lines import require_works
from .environment import check_references, inherited, read_references, referred
from .job import NAME, Job, check_environment, check_venv, quoted, refuse
from .ray import backend as ray
from .ray import client
from .record import JobRecord, claim, write_private
from .slurm import backend as slurm
from .slurm import queue
from .slurm.plain import plain_script


@dataclass(frozen=True)
class ShardJob:
    """What [shard] says.

    Attributes:
        table: of the job file.
        program: after `python -m`.
        needs: a word that the command must have.
        sets: options that it must leave to the job, and the keys to give instead.
    """

    table = "shard"
    program = (package("data_tools"), "shard")
    needs = "--out"
    sets: ClassVar[Mapping[str, str]] = {"--part": "tasks", "--workers": "workers", "--engine": "tasks and --on ray"}

    name: str  # name of the job, its logs and its entry in the scheduler
    command: tuple[str, ...]  # the words after `mvlm-data shard`, or `mvlm score`
    tasks: int = 1  # of the array on SLURM, or at a time on Ray
    workers: int = 1  # decoding processes of a task on SLURM and on this machine
    environment: dict[str, str] = field(default_factory=dict)  # added to the environment of every task
    venv: str = ""  # a virtual environment that all nodes see; "" = the one that submit runs in
    modules: tuple[str, ...] = ()  # `module load` on every node
    logs: str = ""  # "" = runs/NAME/logs
    time: str = ""  # limit of a task as SLURM writes it: minutes, H:M:S or D-H:M:S
    partition: str = ""  # SLURM's
    account: str = ""  # SLURM's
    qos: str = ""  # SLURM's
    sbatch: tuple[str, ...] = ()  # additional sbatch options, such as "--constraint=scratch"
    ray_address: str = ""  # a cluster's dashboard, such as http://127.0.0.1:8265; "" = $RAY_API_SERVER_ADDRESS

    @property
    def log_folder(self) -> Path:
        return self.as_job.log_folder

    @property
    def as_job(self) -> Job:
        """A job of one process in the same place, as far as schedulers care."""
        names = (
            *("name", "logs", "time", "partition", "account", "qos", "sbatch"),
            *("ray_address", "modules", "environment"),
        )
        return Job(run="", deepspeed="", cpus_per_process=self.workers, **{name: getattr(self, name) for name in names})

    def words(self, *more: str) -> list[str]:
        """The command line of a task."""
        interpreter = f"{Path(self.venv).absolute()}/bin/python" if self.venv else sys.executable
        return [interpreter, "-m", *self.program, *self.command, *more]

    @property
    def task_words(self) -> list[str]:
        """The command line of a task on SLURM or this machine, without its part."""
        return self.words("--workers", str(self.workers))

    @property
    def ray_words(self) -> list[str]:
        """The command line that Ray's job server starts."""
        return self.words("--engine", "ray", "--workers", str(self.tasks))


@dataclass(frozen=True)
class ScoreJob(ShardJob):
    """What [score] says; `workers` are cores of a task."""

    table = "score"
    program = ("mvlm", "score")
    needs = "--checkpoint"
    sets: ClassVar[Mapping[str, str]] = {"--part": "tasks"}

    gpu: bool = False  # whether each task has one

    @property
    def as_job(self) -> Job:
        return replace(super().as_job, gpus_per_node=int(self.gpu))

    @property
    def task_words(self) -> list[str]:
        return self.words()

    @property
    def ray_words(self) -> list[str]:
        each = [str(self.tasks), str(self.workers), str(int(self.gpu))]
        return [self.words()[0], "-m", f"{client.__package__}.parts", *each, *self.words()]


JOBS = {job.table: job for job in (ShardJob, ScoreJob)}


def is_shard_job(path: str | Path) -> bool:
    """Whether a job file has one of these tables."""
    return bool(JOBS.keys() & read_tables(find_file(path, "cluster"), "job file").keys())


def load(path: str | Path, overrides: Iterable[str] = ()) -> ShardJob:
    """Read a job file and apply overrides, `shard.key=value` or `score.key=value`.

    Raises:
        UserError: the file, a key or a value will not do.
    """
    tables = read_tables(find_file(path, "cluster"), "job file")
    table = next(iter(JOBS.keys() & tables.keys()))
    for override in overrides:
        if not override.startswith(f"{table}."):
            raise UserError(
                f"{path} is a job of [{table}], of which {override!r} is not a setting: begin it with {table}."
            )
        apply_override(tables, f"{table}.{quoted(JOBS[table], override.removeprefix(f'{table}.'))}")
    if set(tables) != {table}:
        raise UserError(f"{path}: [{table}] must be the only table of its job file.")
    mistakes = Mistakes()
    kind = JOBS[table]
    job: ShardJob = build(kind, tables[table], str(path), f"{table}.", mistakes)
    mistakes.settle()
    if not NAME.fullmatch(job.name):
        raise UserError(f"{path}: {table}.name is {job.name!r}: use letters, digits, dots, dashes and underscores.")
    if kind.needs not in job.command:
        program = "mvlm-data shard" if kind is ShardJob else "mvlm score"
        raise UserError(f"{path}: {table}.command needs the words after `{program}`, including {kind.needs}.")
    for word in job.command:
        if (option := word.partition("=")[0]) in kind.sets:
            raise UserError(
                f"{path}: {table}.command has {option}, which the job sets itself: give {table}.{kind.sets[option]}."
            )
    check_environment(job.environment, f"{path}: {table}")
    check_venv(job.venv, f"{path}: {table}")
    if min(job.tasks, job.workers) < 1:
        raise UserError(f"{path}: {table}.tasks and {table}.workers must be 1 or more.")
    return job


def render(job: ShardJob, backend: str) -> str:
    """What `submit` would run."""
    if backend == "slurm":
        return f"{_script(job, f'1-{job.tasks}', '')}\n\n{_script(job, '', 'afterany:ARRAY')}"
    return _ray_entrypoint(job) if backend == "ray" else shlex.join(_alone(job, backend))


def submit(job: ShardJob, backend: str) -> int:
    """Run the job on this machine, or hand it to a scheduler.

    Raises:
        UserError: the back-end is not there, or refuses it.
    """
    check_references(job.environment, f"{job.table}.environment")
    require_works([*job.program, *job.command], f"{job.table}.command")
    if backend == "local":
        variables = inherited() | read_references(job.environment)
        ended = subprocess.run(_alone(job, backend), env=variables, preexec_fn=end_with_parent)
        return shell_code(ended.returncode)
    with claim(job.log_folder):
        return _submit_to_slurm(job) if backend == "slurm" else _submit_to_ray(job)


def _alone(job: ShardJob, backend: str) -> list[str]:
    is_ray = backend == "ray"
    elsewhere = ("time", "partition", "account", "qos", "sbatch", "modules", *(() if is_ray else ("ray_address",)))
    refuse(job.as_job, backend, elsewhere, job.table)
    return job.ray_words if is_ray else job.task_words


def _submit_to_slurm(job: ShardJob) -> int:
    queue.require("sbatch")
    slurm.refuse_second(job.as_job)
    array, join = job.log_folder / "parts.sbatch", job.log_folder / "join.sbatch"
    write_private(array, _script(job, f"1-{job.tasks}", ""))
    array_id = queue.submit(array)
    write_private(join, _script(job, "", f"afterany:{array_id}"))
    try:
        job_id = f"{array_id},{queue.submit(join)}"
    except UserError:
        queue.remove(array_id)
        raise
    JobRecord(job.name, "slurm", str(Path.cwd()), socket.gethostname(), job_id=job_id, makes_shards=True).save(
        job.log_folder
    )
    print(f"{job.name} is jobs {job_id}: {job.tasks} tasks, and one that joins their parts; logs in {job.log_folder}")
    return 0


def _script(job: ShardJob, array: str, dependency: str) -> str:
    """The batch script of the array with these numbers, or of the job that joins if `array` is ""."""
    refuse(job.as_job, "slurm", ("ray_address",), job.table)
    share = f' --part "$SLURM_ARRAY_TASK_ID/{job.tasks}"' if array else ""
    return plain_script(
        job.as_job,
        job.name if array else f"{job.name}-join",
        shlex.join(job.task_words) + share,
        job.log_folder / f"{'parts-%a' if array else 'join'}.log",
        array,
        dependency,
    )


def _submit_to_ray(job: ShardJob) -> int:
    address = client.address(job.as_job)
    earlier = ray.earlier_attempts(job.log_folder)
    server, job_id = client.connect(address), f"{job.name}-{secrets.token_hex(4)}"
    with client.refusals_as_mistakes():
        server.submit_job(
            entrypoint=_ray_entrypoint(job), submission_id=job_id, runtime_env={"env_vars": ray_variables(job)}
        )
    record = JobRecord(job.name, "ray", str(Path.cwd()), address, job_id=job_id, makes_shards=True, attempts=earlier)
    record.save(job.log_folder)
    print(f"submitted {job.name} as {job_id} to {address}")
    return 0


def _ray_entrypoint(job: ShardJob) -> str:
    """The command line for a shell of Ray, which starts in a folder of its own."""
    return f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(_alone(job, 'ray'))}"


def ray_variables(job: ShardJob) -> dict[str, str]:
    """Those of the job's driver and tasks. Ray shows them to whoever sees the job; nodes fill in secrets themselves."""
    given = {name: f"${{{other}}}" if (other := referred(value)) else value for name, value in job.environment.items()}
    return {"PYTHONPATH": client.import_path()} | given


def show_logs(folder: Path, record: JobRecord, follow: bool) -> None:
    """Print what its tasks have printed, until the job ends if asked."""
    if record.backend == "ray" and follow:
        client.follow_driver_log(client.connect(record.host), record.job_id)
    elif record.backend == "ray":
        print(client.driver_log(client.connect(record.host), record.job_id), end="")
    else:
        _show_files(folder, lambda: follow and bool(queue.queued(record.job_id)))


def _show_files(folder: Path, unfinished: Callable[[], bool]) -> None:
    shown: dict[Path, int] = {}  # bytes of each
    more = True
    while more:
        more = unfinished()  # asked first, so that the last read misses nothing
        for path in sorted(folder.glob("*.log")):
            if (text := path.read_bytes()[shown.get(path, 0) :]) or path not in shown:
                print(f"==> {path.name} <==\n{text.decode(errors='replace')}", end="", flush=True)
                shown[path] = shown.get(path, 0) + len(text)
        if more:
            time.sleep(slurm.POLL_SECONDS)
