"""The job file: which run goes where. A strict TOML table, [job], another for sweeps, and `job.key=value` overrides."""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mvlm.config.shipped import find_file
from mvlm.config.toml import apply_override, as_toml, build, read_tables
from mvlm.errors import Mistakes, UserError

DEFAULT_RUN_FOLDER = "runs/mvlm"  # of `mvlm train` if the run TOML names none
LEAST = {
    "nodes": 1,
    "min_nodes": 0,
    "gpus_per_node": 0,
    "processes_per_node": 1,
    "cpus_per_process": 0,
    "requeue": 0,
    "warning_seconds": 30,
    "parallel": 0,
    "samples": 0,
    "grace_steps": 0,
    "reduction": 2,
}
SHARED = ("evaluate", "index", "score")
"""Commands of `mvlm` whose ranks share the work, with the same results whatever their number."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")


@dataclass(frozen=True)
class Sweep:
    """What [sweep] says: the same job with other settings of its run, each a run of its own below the job's run.dir."""

    values: dict[str, list[Any]]  # a key of the run TOML, such as "optim.lr", and the values to try
    parallel: int = 0  # runs at the same time; 0 = as many as fit
    samples: int = 0  # number of random combinations; 0 = all
    metric: str = "loss"  # metric in metrics.jsonl to compare runs by
    mode: Literal["min", "max"] = "min"  # whether a smaller or a larger metric is better
    grace_steps: int = 0  # steps after which a run may be stopped for a bad metric; 0 = never
    reduction: int = 3  # one run in this many continues at each rung


@dataclass(frozen=True)
class Job:
    """What [job] says. Paths count from the folder the command is given in, as those of `mvlm train` do."""

    name: str  # name of the job, its logs and its entry in the scheduler
    run: str = ""  # path of the run TOML; required to train or fine-tune
    deepspeed: str = ""  # path of the DeepSpeed JSON; required to train or fine-tune
    # instead of both: what follows `mvlm` in an evaluate, index or score command, whose work the ranks share
    command: tuple[str, ...] = ()
    nodes: int = 1  # number of machines
    min_nodes: int = 0  # continue with no fewer than this if nodes are lost; 0 = `nodes`
    gpus_per_node: int = 0  # one process per GPU; 0 = on the CPU
    processes_per_node: int = 1  # on the CPU; not together with gpus_per_node
    cpus_per_process: int = 0  # cores for each process; 0 = what the scheduler gives
    environment: dict[str, str] = field(default_factory=dict)  # added to the environment of every rank
    venv: str = ""  # a virtual environment that all nodes can read; "" = the one that submit runs in
    modules: tuple[str, ...] = ()  # modules to load with `module load` on every node
    container: str = ""  # an image with mvlm installed
    # ethernet, efa or infiniband if the nodes cannot detect it
    network: Literal["auto", "ethernet", "efa", "infiniband"] = "auto"
    requeue: int = 3  # restarts after exit code 75 (preempted), a crash or a lost node
    logs: str = ""  # folder of the logs; "" = runs/NAME/logs
    time: str = ""  # limit as SLURM writes it: minutes, H:M:S or D-H:M:S
    warning_seconds: int = 120  # how long before the limit the run is told to save
    partition: str = ""  # SLURM's
    account: str = ""  # SLURM's
    qos: str = ""  # SLURM's
    # gpus-per-task if the site requires it; gres for clusters that support nothing else
    gpu_request: Literal["gpus-per-node", "gpus-per-task", "gres"] = "gpus-per-node"
    launcher: Literal["srun", "torchrun", "deepspeed", "pdsh"] = "srun"  # what starts the ranks on SLURM
    sbatch: tuple[str, ...] = ()  # additional sbatch options, such as "--constraint=h100"
    ray_address: str = ""  # a cluster's dashboard, such as http://127.0.0.1:8265; "" = $RAY_API_SERVER_ADDRESS
    sweep: Sweep | None = None

    @property
    def ranks_per_node(self) -> int:
        return self.gpus_per_node or self.processes_per_node

    @property
    def log_folder(self) -> Path:
        return Path(self.logs or f"runs/{self.name}/logs")

    @property
    def time_seconds(self) -> int | None:
        """The limit; None if there is none."""
        return parse_time(self.time) if self.time else None

    @property
    def kept(self) -> tuple[str, str]:
        """The copies of its files that its ranks use: the originals may be edited before the job has ended."""
        return str(self.log_folder / "run.toml"), str(self.log_folder / "deepspeed.json")

    def words(self, overrides: Iterable[str]) -> list[str]:
        """The words after `mvlm` in a rank's command line."""
        run, deepspeed = self.kept
        return [*self.command] if self.command else ["train", run, "--deepspeed_config", deepspeed, *overrides]


def parse_time(text: str) -> int | None:
    """Seconds of a limit as SLURM writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; None if it is none of them."""
    if not TIME.fullmatch(text):
        return None
    days, dash, rest = text.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    if dash or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def refuse(given: Job | Sweep, backend: str, names: Iterable[str], table: str = "") -> None:
    """Refuse what a back-end cannot honour.

    Args:
        names: of the fields that it cannot honour.
        table: of the file; "" = [job] or [sweep].

    Raises:
        UserError: one of them is set.
    """
    own, unset = ("job", Job("", "", "")) if isinstance(given, Job) else ("sweep", Sweep({}))
    for name in names:
        if (value := getattr(given, name)) != getattr(unset, name):
            what = "[sweep] is given" if name == "sweep" else f"{table or own}.{name} is {value!r}"
            raise UserError(f"{what}, which the {backend} back-end cannot honour: remove it.")


def split_overrides(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """The `key=value` words of the job, which begin with `job.`, and those of the run."""
    words = list(words)
    return [w for w in words if w.startswith("job.")], [w for w in words if not w.startswith("job.")]


def load_job(path: str | Path, overrides: Iterable[str] = ()) -> Job:
    """Read a job TOML and apply `job.key=value` overrides, values in TOML syntax or bare strings.

    Raises:
        UserError: the file, a key or a value will not do.
    """
    tables = read_tables(find_file(path, "cluster"), "job file")
    for name in tables:
        if name not in ("job", "sweep"):
            raise UserError(
                f"{path}: unknown table [{name}]; a job file has [job] and, for several runs, [sweep]; "
                "or [shard], or [score]."
            )
    if not isinstance(tables.get("job"), dict):
        raise UserError(f"{path} has no table [job]: it is not a job file.")
    for override in overrides:
        apply_override(tables, f"job.{quoted(Job, override.removeprefix('job.'))}")
    return job_from_tables(tables, str(path))


def log_folder_of(path: str | Path) -> Path:
    """The log folder that a job file names, whether its job trains, makes shards or scores them."""
    tables = read_tables(find_file(path, "cluster"), "job file")
    for table in (tables.get("shard"), tables.get("score")):
        if isinstance(table, dict):
            return Path(str(table.get("logs") or f"runs/{table.get('name')}/logs"))
    return load_job(path).log_folder


def job_from_tables(tables: dict[str, Any], where: str) -> Job:
    """Build and check a job; `where` names the file in error messages."""
    if "sweep" in tables["job"]:
        raise UserError(f"{where}: unknown key job.sweep; [sweep] is a table of its own.")
    job = _build(Job, tables["job"], where, "job")
    _check(job, tables["job"], where)
    if job.command:
        if "sweep" in tables:
            raise UserError(f"{where}: [sweep] tries settings of a run, and job.command is none: remove one of them.")
        return job
    run, deepspeed = find_file(job.run, "configs"), find_file(job.deepspeed, "ds_configs")
    job = dataclasses.replace(job, run=str(run), deepspeed=str(deepspeed))
    if "sweep" not in tables:
        return job
    sweep = _build(Sweep, tables["sweep"], where, "sweep")
    if not sweep.values:
        raise UserError(f'{where}: sweep.values is missing: name what to try, such as "optim.lr" = [1e-4, 3e-4].')
    if "run.dir" in sweep.values:
        raise UserError(f"{where}: sweep.values has run.dir, which every run of a sweep has of its own: remove it.")
    for name, choices in sweep.values.items():
        if not re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", name) or not isinstance(choices, list) or not choices:
            raise UserError(f'{where}: sweep.values.{name} must be like "optim.lr" = [1e-4, 3e-4]; fix that line.')
    return dataclasses.replace(job, sweep=sweep)


def check_files(job: Job) -> None:
    """Refuse a job whose files or interpreter are not there, before anything is started."""
    for key in () if job.command else ("run", "deepspeed"):
        if not Path(getattr(job, key)).is_file():
            raise UserError(
                f"job.{key} names {getattr(job, key)}, which is not a file here: paths count from {Path.cwd()}."
            )
    check_venv(job.venv, "job")


def check_venv(venv: str, where: str) -> None:
    """Raises `UserError` if there is no Python in it, as far as can be seen from here; `where` names file and table."""
    if venv and not out_of_sight(venv) and not os.access(Path(venv) / "bin/python", os.X_OK):
        raise UserError(
            f"{where}.venv names {venv}, where there is no bin/python to run: give a virtual environment's folder; "
            f"paths count from {Path.cwd()}."
        )


def out_of_sight(path: str) -> bool:
    """Whether it lies on a disk that this machine does not have: not even the first folder of its path is here."""
    return Path(path).is_absolute() and not Path(*Path(path).parts[:2]).exists()


def run_folder(job: Job, overrides: Iterable[str]) -> Path:
    """Where the run will write: `run.dir` of the last override that sets it, else of the run TOML.

    For a command it is the folder of its logs: it leaves neither metrics nor checkpoints.
    """
    if job.command:
        return job.log_folder
    tables = read_tables(job.run, "run configuration")
    for word in overrides:
        if word.startswith("run.dir="):
            apply_override(tables, word)
    table = tables.get("run")
    return Path(str(table.get("dir", DEFAULT_RUN_FOLDER)) if isinstance(table, dict) else DEFAULT_RUN_FOLDER)


def quoted(cls: type, override: str) -> str:
    """An override, without its table, with its value quoted as TOML if its key takes only strings: time=90."""
    name, equals, text = override.partition("=")
    takes_text = typing.get_type_hints(cls).get(name) is str
    if (takes_text or name.startswith("environment.")) and not text.startswith(("'", '"')):
        return f"{name}{equals}{as_toml(text)}"
    return override


def _build(cls: type, values: Any, where: str, table: str) -> Any:
    mistakes = Mistakes()
    built = build(cls, values, where, f"{table}.", mistakes)
    mistakes.settle()
    for name, value in vars(built).items():
        if name in LEAST and value < LEAST[name]:
            raise UserError(f"{where}: {table}.{name} is {value}: it must be {LEAST[name]} or more.")
        texts = (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ()
        if any(ord(character) < 32 for text in texts for character in text):
            raise UserError(f"{where}: {table}.{name} is {value!r}: it must be one plain line.")
    return built


def _check(job: Job, given: dict[str, Any], where: str) -> None:
    for name in ("name",) if job.command else ("name", "run", "deepspeed"):
        if not getattr(job, name):
            raise UserError(
                f"{where}: job.{name} is missing: every job has a name, and a run TOML and a DeepSpeed JSON, "
                "or a job.command."
            )
    if job.command and (job.run or job.deepspeed):
        key = "run" if job.run else "deepspeed"
        raise UserError(f"{where}: job.command and job.{key} are both given: keep the one that this job is to do.")
    if job.command and job.command[0] not in SHARED:
        raise UserError(
            f"{where}: job.command begins with {job.command[0]!r}: it is for {', '.join(SHARED)}; training has job.run."
        )
    if job.gpus_per_node and "processes_per_node" in given:
        raise UserError(
            f"{where}: job.gpus_per_node and job.processes_per_node are both given: "
            "a GPU has one process; keep gpus_per_node on GPUs, processes_per_node on the CPU."
        )
    if not NAME.fullmatch(job.name):
        raise UserError(f"{where}: job.name is {job.name!r}: use letters, digits, dots, dashes and underscores.")
    if job.min_nodes > job.nodes:
        raise UserError(f"{where}: job.min_nodes is {job.min_nodes}: it must not be above job.nodes, {job.nodes}.")
    if job.time and not job.time_seconds:
        raise UserError(f"{where}: job.time is {job.time!r}: give minutes, H:M:S or D-H:M:S.")
    if job.time_seconds and job.time_seconds <= job.warning_seconds:
        raise UserError(
            f"{where}: job.time is {job.time!r}, and the last {job.warning_seconds} s of it, job.warning_seconds, "
            "are for saving: give more time."
        )
    if job.venv and job.container:
        raise UserError(f"{where}: job.venv and job.container are both given: an image has its own Python; keep one.")
    check_environment(job.environment, f"{where}: job")


def check_environment(environment: dict[str, Any], where: str) -> None:
    """Raises `UserError` for an invalid variable name, or a value that is not text; `where` names file and table."""
    for name, value in environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"{where}.environment.{name} is not the name of an environment variable: rename it.")
        if not isinstance(value, str) or "\0" in value:
            raise UserError(f"{where}.environment.{name} is {value!r}: give a string, in quotes.")
