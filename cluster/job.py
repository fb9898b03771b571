"""The job file: which run goes where. One strict TOML table, [job], and `job.key=value` overrides."""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_RUN_FOLDER = "runs/mvlm"  # of `mvlm train` where the run TOML names none
KINDS = {"str": (str, "a string"), "int": (int, "a whole number"), "dict[str, str]": (dict, "a table of strings")}


class JobError(Exception):
    """A user's mistake: one sentence saying what, where and what to do. The command exits with code 1."""


@dataclass(frozen=True)
class Job:
    """What [job] says. Paths count from the folder the command is given in, as those of `mvlm train` do."""

    name: str
    run: str  # path of the run TOML
    deepspeed: str  # path of the DeepSpeed JSON
    nodes: int = 1
    gpus_per_node: int = 0
    processes_per_node: int = 1  # on the CPU; exclusive with gpus_per_node
    environment: dict[str, str] = field(default_factory=dict)  # added to the environment of every rank
    requeue: int = 3  # restarts after exit code 75 (preempted) or a crash
    logs: str = ""  # "" = runs/NAME/logs
    time: str = ""  # limit, in the scheduler's own form
    partition: str = ""

    @property
    def ranks_per_node(self) -> int:
        return self.gpus_per_node or self.processes_per_node

    @property
    def log_folder(self) -> Path:
        return Path(self.logs or f"runs/{self.name}/logs")


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
        if name != "job":
            raise JobError(f"{path}: unknown table [{name}]; a job file has one, [job].")
    values = tables.get("job")
    if not isinstance(values, dict):
        raise JobError(f"{path} has no table [job]: it is not a job file.")
    for override in overrides:
        _apply_override(values, override)
    return _checked(values, str(path))


def check_files(job: Job) -> None:
    """Refuse a job whose files are not there, before anything is started."""
    for key in ("run", "deepspeed"):
        if not Path(getattr(job, key)).is_file():
            raise JobError(
                f"job.{key} names {getattr(job, key)}, which is no file here: paths count from {Path.cwd()}."
            )


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
        raise JobError(f"The override {override!r} is not of the form job.key=value or job.environment.NAME=value.")
    if len(keys) == 1:
        values[keys[0]] = _value(text)
        return
    environment = values.setdefault("environment", {})
    if isinstance(environment, dict):
        value = _value(text)
        environment[keys[1]] = value if isinstance(value, str) else text


def _checked(values: dict[str, Any], where: str) -> Job:
    fields = {f.name: f for f in dataclasses.fields(Job)}
    for name, value in values.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
            hint = f"did you mean job.{close[0]}?" if close else f"known are {', '.join(fields)}."
            raise JobError(f"{where}: unknown key job.{name}; {hint}")
        kind, words = KINDS[str(fields[name].type)]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise JobError(f"{where}: job.{name} is {value!r}: give {words}.")
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
    for name, least in (("nodes", 1), ("gpus_per_node", 0), ("processes_per_node", 1), ("requeue", 0)):
        if getattr(job, name) < least:
            raise JobError(f"{where}: job.{name} is {getattr(job, name)}: it must be {least} or more.")
    _check_environment(job.environment, where)
    return job


def _check_environment(environment: dict[Any, Any], where: str) -> None:
    for name, value in environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise JobError(f"{where}: job.environment.{name} is no name of an environment variable; rename it.")
        if not isinstance(value, str) or "\0" in value:
            raise JobError(f"{where}: job.environment.{name} is {value!r}: give a string, in quotes.")
