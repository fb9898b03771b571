"""The pipeline file: [pipeline], and a table [[step]] for each step; overrides are `STEP.key=value`."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from mvlm.config.shipped import find_example, find_file
from mvlm.config.toml import apply_override, as_toml, build, read_tables
from mvlm.errors import Mistakes, UserError

from ..environment import check_references
from ..job import LEAST as JOB_LEAST
from ..job import check_environment, parse_time, quoted

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
MEMORY = re.compile(r"([1-9]\d*)([KMGT]?)")
TRAINING = ("train", "finetune")
BY_RUN = (*TRAINING, "preflight")
"""Kinds that are defined by a run TOML and a DeepSpeed JSON."""
WITH_RANKS = (*TRAINING, "evaluate", "index")
"""Kinds whose work ranks share, one for each GPU or process of each node."""
IN_PARTS = ("shard", "score")
LEAST = {"parts": 1, "retries": 0, "nodes": 1, "gpus": 0, "processes": 1, "cpus": 1, "pairs": 0}


@dataclass(frozen=True)
class PipelineSettings:
    """What [pipeline] says; a step's own settings take precedence."""

    name: str  # of the pipeline, its logs and its jobs
    logs: str = ""  # "" = runs/NAME/pipeline
    cpus: int = 0  # that the local back-end gives out; 0 = those of this machine
    environment: dict[str, str] = field(default_factory=dict)  # of every step; "env:NAME" = the value of NAME
    venv: str = ""  # a virtual environment that all nodes see; "" = the one that submit runs in
    modules: tuple[str, ...] = ()  # `module load` on every node
    partition: str = ""  # SLURM's
    account: str = ""  # SLURM's
    qos: str = ""  # SLURM's
    ray_address: str = ""  # a cluster's dashboard; "" = $RAY_API_SERVER_ADDRESS
    gpu: str = ""  # a card of `mvlm plan`, to plan training by
    gpu_hour: float = 0.0  # price of a GPU for an hour
    core_hour: float = 0.0  # price of a CPU for an hour


@dataclass(frozen=True)
class PipelineStep:
    """What a [[step]] says. Paths count from the folder the command is given in."""

    name: str
    kind: Literal[
        "shard",
        "score",
        "filter",
        "tokenizer",
        "preflight",
        "train",
        "finetune",
        "evaluate",
        "export",
        "index",
        "command",
    ]
    command: tuple[str, ...] = ()  # the words after the kind's program; of `command` the whole command line
    run: str = ""  # of training: path of the run TOML
    deepspeed: str = ""  # of training: path of the DeepSpeed JSON
    settings: dict[str, Any] = field(default_factory=dict)  # of training: overrides of the run TOML
    reads: tuple[str, ...] = ()  # files, folders and URLs; outputs of other steps are found in the words, too
    writes: tuple[str, ...] = ()  # the same; the first is the program's --out, --json or run.dir
    parts: int = 1  # of shard and score: tasks that share the work on SLURM and Ray
    retries: int = 3  # after exit code 75 or a crash
    nodes: int = 1  # of training, evaluate and index
    gpus: int = 0  # of a node
    processes: int = 1  # of the same on the CPU, of a node
    cpus: int = 1  # of a node
    memory: str = ""  # of a node, as SLURM writes it: 64G
    time: str = ""  # limit as SLURM writes it
    partition: str = ""  # SLURM's
    image: str = ""  # of training on SLURM: an image with mvlm installed
    environment: dict[str, str] = field(default_factory=dict)
    sbatch: tuple[str, ...] = ()  # additional sbatch options
    pairs: int = 0  # of training: pairs of an epoch, to plan by while there are no shards yet

    @property
    def overrides(self) -> list[str]:
        """The run's overrides, as `key=value` words."""
        own = [f"run.dir={as_toml(self.writes[0])}"] if self.kind in TRAINING else []
        return [*(f"{key}={as_toml(value)}" for key, value in _flat(self.settings)), *own]

    @property
    def is_job(self) -> bool:
        """Whether it has ranks, which the back-end's launcher starts, and is not a single process."""
        is_alone = self.kind not in TRAINING and self.nodes * (self.gpus or self.processes) == 1
        return self.kind in WITH_RANKS and not is_alone


@dataclass(frozen=True)
class Pipeline:
    path: str
    settings: PipelineSettings
    steps: dict[str, PipelineStep]  # in the order of the file
    tables: dict[str, Any]  # what it was built from: [pipeline] and the steps, by name, with the overrides

    @property
    def logs(self) -> Path:
        return Path(self.settings.logs or f"runs/{self.settings.name}/pipeline")

    def environment(self, step: PipelineStep) -> dict[str, str]:
        return self.settings.environment | step.environment


def is_pipeline(path: str | Path) -> bool:
    """Whether a file is a pipeline file."""
    found = find_file(path, "cluster")
    return found.is_file() and "step" in read_tables(found, "pipeline file")


def load_pipeline(path: str | Path, overrides: Iterable[str] = ()) -> Pipeline:
    """Read a pipeline file and apply overrides: `pipeline.key=value`, `STEP.key=value`.

    Raises:
        UserError: with a sentence for each mistake.
    """
    where = str(path)
    tables = _by_name(read_tables(find_file(path, "cluster"), "pipeline file"), where)
    for override in overrides:
        name, _, rest = override.partition(".")
        if name not in tables:
            raise UserError(f"{where}: the override {override!r} belongs to no step; {_nearest(name, tables)}")
        cls = PipelineSettings if name == "pipeline" else PipelineStep
        apply_override(tables, f"{name}.{quoted(cls, rest)}")
    return pipeline_from_tables(tables, where)


def pipeline_from_tables(tables: dict[str, Any], where: str) -> Pipeline:
    """Build and check a pipeline; `where` names the file in error messages."""
    mistakes = Mistakes()
    settings: PipelineSettings = build(PipelineSettings, tables["pipeline"], where, "pipeline.", mistakes)
    steps = {
        name: build(PipelineStep, table, where, f"{name}.", mistakes)
        for name, table in tables.items()
        if name != "pipeline"
    }
    mistakes.settle()
    if not NAME.fullmatch(settings.name):
        mistakes.add(f"{where}: pipeline.name is {settings.name!r}: use letters, digits, dashes and underscores.")
    for step in steps.values():
        for sentence in _complaints(step):
            mistakes.add(f"{where}: {sentence}")
    for step in (settings, *steps.values()):
        place = f"{where}: {'pipeline' if step is settings else step.name}"
        with mistakes.gathered():
            check_environment(step.environment, place)
    mistakes.settle()
    return Pipeline(where, settings, {name: _normal(step) for name, step in steps.items()}, tables)


def check_secrets(pipeline: Pipeline) -> None:
    """Raises `UserError` if a variable that a step is to be given is not set here."""
    mistakes = Mistakes()
    given = {"pipeline": pipeline.settings.environment}
    given |= {name: step.environment for name, step in pipeline.steps.items()}
    for name, environment in given.items():
        with mistakes.gathered():
            check_references(environment, f"{pipeline.path}: {name}.environment")
    mistakes.settle()


def memory_bytes(text: str) -> int:
    """Bytes of an amount as SLURM writes it, in megabytes if no unit is given; 0 if it is not an amount."""
    found = MEMORY.fullmatch(text)
    return int(found[1]) * 1024 ** ("KMGT".index(found[2] or "M") + 1) if found else 0


def normal(path: str) -> str:
    """A path or URL in the form in which it is compared."""
    return path.rstrip("/") if "://" in path else os.path.normpath(path)


def _by_name(tables: dict[str, Any], where: str) -> dict[str, Any]:
    for name in tables.keys() - {"pipeline", "step"}:
        raise UserError(f"{where}: unknown table [{name}]; a pipeline file has [pipeline] and [[step]].")
    if "step" not in tables:
        raise UserError(f"{where} has no [[step]]: it is not a pipeline file.")
    steps = tables["step"]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise UserError(f"{where}: a step is written [[step]], in double brackets: fix that line.")
    found = {"pipeline": tables.get("pipeline", {})}
    for number, step in enumerate(steps, 1):
        name = step.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name) or name == "pipeline":
            raise UserError(f"{where}: step {number} has the name {name!r}: use letters, digits, dashes, underscores.")
        if name in found:
            raise UserError(f"{where}: two steps are called {name}: rename one.")
        if "kind" not in step:
            raise UserError(f'{where}: {name}.kind is missing: give one such as "shard", "train" or "command".')
        found[name] = step
    return found


def _complaints(step: PipelineStep) -> Iterator[str]:
    """What is wrong with a step by itself, as sentences without the file's name."""
    name, kind = step.name, step.kind
    for key, least in LEAST.items():
        if getattr(step, key) < least:
            yield f"{name}.{key} is {getattr(step, key)}: it must be {least} or more."
    if step.time and not parse_time(step.time):
        yield f"{name}.time is {step.time!r}: give minutes, H:M:S or D-H:M:S."
    elif step.time and step.is_job and (parse_time(step.time) or 0) <= JOB_LEAST["warning_seconds"]:
        yield f"{name}.time is {step.time!r}, and its last {JOB_LEAST['warning_seconds']} s are for saving: give more."
    if step.memory and not memory_bytes(step.memory):
        yield f"{name}.memory is {step.memory!r}: write it like 64G."
    by_run = kind in BY_RUN
    for key in ("run", "deepspeed") if by_run else ("command",):
        if not getattr(step, key):
            yield f"{name}.{key} is missing, which a step of kind {kind} has: add it."
    foreign = {"command": by_run, "run": not by_run, "deepspeed": not by_run, "settings": not by_run}
    foreign |= {
        "pairs": kind not in TRAINING,
        "nodes": not by_run and kind not in WITH_RANKS,
        "processes": not by_run and kind not in WITH_RANKS,
        "image": kind not in TRAINING,
        "parts": kind not in IN_PARTS,
    }
    for key, is_foreign in foreign.items():
        if is_foreign and getattr(step, key) != _DEFAULTS[key]:
            yield f"{name}.{key} is {getattr(step, key)!r}, which a step of kind {kind} does not have: remove it."
    if step.gpus and step.processes > 1:
        yield f"{name}.gpus and {name}.processes are both given: a GPU has one process; keep one of them."
    if kind not in ("command", "preflight") and not step.writes:
        yield f"{name}.writes is missing: say what a step of kind {kind} makes."
    if kind in TRAINING and len(step.writes) > 1:
        yield f"{name}.writes has {len(step.writes)} entries: a step of kind {kind} writes one, its run folder."
    if any(key == "run.dir" for key, _ in _flat(step.settings)):
        yield f"{name}.settings has run.dir, which is {name}.writes: remove it."


def _normal(step: PipelineStep) -> PipelineStep:
    reads = (path if "://" in path else str(find_example(path)) for path in map(normal, step.reads))
    return replace(step, reads=tuple(reads), writes=tuple(map(normal, step.writes)))


def _nearest(name: str, tables: dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, tables, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"begin it with one of {', '.join(tables)}."


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


_DEFAULTS: dict[str, Any] = {
    each.name: each.default if each.name != "settings" else {} for each in fields(PipelineStep)
}
