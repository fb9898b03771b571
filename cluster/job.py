"""The job file: which run goes where. A strict TOML table, [job], another for sweeps, and `job.key=value` overrides."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_RUN_FOLDER = "runs/mvlm"  # of `mvlm train` where the run TOML names none
KINDS = {
    "str": (str, "a string"),
    "int": (int, "a whole number"),
    "list[str]": (list, "a list of strings"),
    "dict[str, str]": (dict, "a table of strings"),
    "dict[str, list[Any]]": (dict, "a table of lists"),
}
CHOICES = {
    "network": ("auto", "ethernet", "efa", "infiniband"),
    "gpu_request": ("gpus-per-node", "gres"),
    "launcher": ("srun", "torchrun", "deepspeed", "pdsh"),
    "mode": ("min", "max"),
}
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
TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")


class JobError(Exception):
    """A user's mistake: one sentence saying what, where and what to do. The command exits with code 1."""


@dataclass(frozen=True)
class Sweep:
    """What [sweep] says: the same job with other settings of its run, each a run of its own below the job's run.dir."""

    values: dict[str, list[Any]]  # a key of the run TOML, such as "optim.lr", and what to try for it
    parallel: int = 0  # runs at the same time; 0 = as many as there is room for
    samples: int = 0  # combinations drawn at random; 0 = every one
    metric: str = "loss"  # of metrics.jsonl
    mode: str = "min"  # of the metric that is better
    grace_steps: int = 0  # a run may be given up for a bad metric after so many steps; 0 = never
    reduction: int = 3  # of so many runs one goes on at each rung


@dataclass(frozen=True)
class Job:
    """What [job] says. Paths count from the folder the command is given in, as those of `mvlm train` do."""

    name: str  # of the job, its logs and its scheduler's entry
    run: str  # path of the run TOML
    deepspeed: str  # path of the DeepSpeed JSON
    nodes: int = 1  # machines
    min_nodes: int = 0  # goes on with as few where nodes are lost; 0 = `nodes`
    gpus_per_node: int = 0  # a process for each; 0 = on the CPU
    processes_per_node: int = 1  # on the CPU; exclusive with gpus_per_node
    cpus_per_process: int = 0  # 0 = what the scheduler gives
    environment: dict[str, str] = field(default_factory=dict)  # added to the environment of every rank
    venv: str = ""  # folder of a virtual environment that all nodes see; "" = the one submit runs in
    modules: list[str] = field(default_factory=list)  # `module load` on every node
    container: str = ""  # an image, which has mvlm
    network: str = "auto"  # ethernet, efa or infiniband where the nodes cannot be asked
    requeue: int = 3  # restarts after exit code 75 (preempted), a crash or a lost node
    logs: str = ""  # "" = runs/NAME/logs
    time: str = ""  # limit as SLURM writes it: minutes, H:M:S or D-H:M:S
    warning_seconds: int = 120  # before the limit, to save in
    partition: str = ""  # of SLURM
    account: str = ""  # of SLURM
    qos: str = ""  # of SLURM
    gpu_request: str = "gpus-per-node"  # or gres, for clusters that know no other
    launcher: str = "srun"  # what starts the ranks on SLURM
    sbatch: list[str] = field(default_factory=list)  # further options of sbatch, such as "--constraint=h100"
    ray_address: str = ""  # of a cluster's dashboard, such as http://127.0.0.1:8265; "" = $RAY_API_SERVER_ADDRESS
    sweep: Sweep | None = None

    @property
    def ranks_per_node(self) -> int:
        return self.gpus_per_node or self.processes_per_node

    @property
    def log_folder(self) -> Path:
        return Path(self.logs or f"runs/{self.name}/logs")

    @property
    def time_seconds(self) -> int | None:
        """The limit; None where there is none."""
        return parse_time(self.time) if self.time else None

    def changed(self) -> list[str]:
        """Names of what is not as it is by default."""
        defaults = {
            f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory() for f in FIELDS
        }
        return [name for name, default in defaults.items() if getattr(self, name) != default]


FIELDS = dataclasses.fields(Job)


def parse_time(text: str) -> int | None:
    """Seconds of a limit as SLURM writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; None where it is none of them."""
    if not TIME.fullmatch(text):
        return None
    days, dash, rest = text.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    if dash or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def refuse(job: Job, backend: str, names: Iterable[str]) -> None:
    """Refuse what a back-end cannot honour.

    Args:
        names: of the fields that it cannot.
    """
    changed = job.changed()
    for name in names:
        if name in changed:
            value = "" if name == "sweep" else f"job.{name} is {getattr(job, name)!r}"
            raise JobError(f"{value or '[sweep] is given'}, which the {backend} back-end cannot honour: remove it.")


def split_overrides(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """`key=value` words that are the job's, which begin with `job.`, and those of the run."""
    words = list(words)
    return [w for w in words if w.startswith("job.")], [w for w in words if not w.startswith("job.")]


def load_job(path: str | Path, overrides: Iterable[str] = ()) -> Job:
    """Read a job TOML and apply `job.key=value` overrides, values in TOML syntax or bare strings.

    Raises:
        JobError: the file, a key or a value will not do.
    """
    tables = _read_toml(Path(path), "job file")
    for name in tables:
        if name not in ("job", "sweep"):
            raise JobError(f"{path}: unknown table [{name}]; a job file has [job] and, for several runs, [sweep].")
    values = tables.get("job")
    if not isinstance(values, dict):
        raise JobError(f"{path} has no table [job]: it is not a job file.")
    for override in overrides:
        _apply_override(values, override)
    job = _checked(values, str(path))
    return dataclasses.replace(job, sweep=_checked_sweep(tables["sweep"], str(path))) if "sweep" in tables else job


def check_files(job: Job) -> None:
    """Refuse a job whose files or interpreter are not there, before anything is started."""
    for key in ("run", "deepspeed"):
        if not Path(getattr(job, key)).is_file():
            raise JobError(
                f"job.{key} names {getattr(job, key)}, which is no file here: paths count from {Path.cwd()}."
            )
    if job.venv and not out_of_sight(job.venv) and not os.access(Path(job.venv) / "bin/python", os.X_OK):
        raise JobError(
            f"job.venv names {job.venv}, where there is no bin/python to run: give a virtual environment's folder; "
            f"paths count from {Path.cwd()}."
        )


def out_of_sight(path: str) -> bool:
    """Whether it lies on a disk that this machine does not have: not even the first folder of its path is here."""
    return Path(path).is_absolute() and not Path(*Path(path).parts[:2]).exists()


def run_folder(job: Job, overrides: Iterable[str]) -> Path:
    """Where the run will write: `run.dir` of the last override that sets it, else of the run TOML."""
    given = [word.partition("=")[2] for word in overrides if word.startswith("run.dir=")]
    if given:
        return Path(str(_value(given[-1])))
    table = _read_toml(Path(job.run), "run configuration").get("run")
    return Path(str(table.get("dir", DEFAULT_RUN_FOLDER)) if isinstance(table, dict) else DEFAULT_RUN_FOLDER)


def _read_toml(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(f"No {what} at {path}: give the path of a TOML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path} cannot be read ({error}): give the path of a TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path} is not valid TOML ({error}): mend that line.") from None


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _apply_override(values: dict[str, Any], override: str) -> None:
    name, _, text = override.partition("=")
    _, *keys = name.split(".")
    if not all(keys) or not (len(keys) == 1 or (len(keys) == 2 and keys[0] == "environment")):
        raise JobError(
            f"The override {override!r} is not of the form job.key=value or job.environment.NAME=value: mend it."
        )
    if len(keys) == 1:
        value = _value(text)
        is_text = any(f.name == keys[0] and f.type == "str" for f in FIELDS)
        values[keys[0]] = text if is_text and not isinstance(value, str) else value  # job.time=90
        return
    environment = values.setdefault("environment", {})
    if isinstance(environment, dict):
        value = _value(text)
        environment[keys[1]] = value if isinstance(value, str) else text


def _checked(values: dict[str, Any], where: str) -> Job:
    _check_kinds(values, "job", [f for f in FIELDS if f.name != "sweep"], where)
    for name in ("name", "run", "deepspeed"):
        if not values.get(name):
            raise JobError(f"{where}: job.{name} is missing: every job has a name, a run TOML and a DeepSpeed JSON.")
    if values.get("gpus_per_node") and "processes_per_node" in values:
        raise JobError(
            f"{where}: job.gpus_per_node and job.processes_per_node are both given: "
            "a GPU has one process; keep gpus_per_node on GPUs, processes_per_node on the CPU."
        )
    job = Job(**values)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", job.name):
        raise JobError(f"{where}: job.name is {job.name!r}: use letters, digits, dots, dashes and underscores.")
    if job.min_nodes > job.nodes:
        raise JobError(f"{where}: job.min_nodes is {job.min_nodes}: it must not be above job.nodes, {job.nodes}.")
    if job.time and not job.time_seconds:
        raise JobError(f"{where}: job.time is {job.time!r}: give minutes, H:M:S or D-H:M:S.")
    if job.time_seconds and job.time_seconds <= job.warning_seconds:
        raise JobError(
            f"{where}: job.time is {job.time!r}, and the last {job.warning_seconds} s of it, job.warning_seconds, "
            "are for saving: give more time."
        )
    if job.venv and job.container:
        raise JobError(f"{where}: job.venv and job.container are both given: an image has its own Python; keep one.")
    _check_environment(job.environment, where)
    return job


def _checked_sweep(values: dict[str, Any], where: str) -> Sweep:
    _check_kinds(values, "sweep", dataclasses.fields(Sweep), where)
    for name, choices in values.get("values", {}).items():
        if not re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", name) or not isinstance(choices, list) or not choices:
            raise JobError(f'{where}: sweep.values.{name} must be like "optim.lr" = [1e-4, 3e-4]; mend that line.')
    if not values.get("values"):
        raise JobError(f'{where}: sweep.values is missing: name what to try, such as "optim.lr" = [1e-4, 3e-4].')
    return Sweep(**values)


def _check_kinds(values: dict[str, Any], table: str, fields: Iterable[dataclasses.Field[Any]], where: str) -> None:
    kinds = {f.name: str(f.type) for f in fields}
    for name, value in values.items():
        if name not in kinds:
            close = difflib.get_close_matches(name, kinds, n=1, cutoff=0.5)
            hint = f"did you mean {table}.{close[0]}?" if close else f"known are {', '.join(kinds)}."
            raise JobError(f"{where}: unknown key {table}.{name}; {hint}")
        kind, words = KINDS[kinds[name]]
        of_strings = kinds[name] != "list[str]" or all(isinstance(item, str) for item in value)
        if not isinstance(value, kind) or isinstance(value, bool) or not of_strings:
            raise JobError(f"{where}: {table}.{name} is {value!r}: give {words}.")
        if isinstance(value, str) and any(ord(character) < 32 for character in value):
            raise JobError(f"{where}: {table}.{name} is {value!r}: it must be one plain line.")
        if name in CHOICES and value not in CHOICES[name]:
            raise JobError(f"{where}: {table}.{name} is {value!r}: it must be one of {', '.join(CHOICES[name])}.")
        if name in LEAST and values[name] < LEAST[name]:
            raise JobError(f"{where}: {table}.{name} is {value}: it must be {LEAST[name]} or more.")


def _check_environment(environment: dict[Any, Any], where: str) -> None:
    for name, value in environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise JobError(f"{where}: job.environment.{name} is no name of an environment variable; rename it.")
        if not isinstance(value, str) or "\0" in value:
            raise JobError(f"{where}: job.environment.{name} is {value!r}: give a string, in quotes.")
