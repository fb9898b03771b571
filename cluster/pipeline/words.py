"""What a step runs: the command line of a step's process on each back-end."""

from __future__ import annotations

import sys
from pathlib import Path

from mvlm.config.shipped import find_file, package
from mvlm.config.toml import as_toml

from ..job import LEAST, Job, parse_time
from .file import BY_RUN, IN_PARTS, Pipeline, PipelineStep

PROGRAMS = {
    "shard": (package("data_tools"), "shard"),
    "filter": (package("data_tools"),),
    "tokenizer": (package("data_tools"), "tokenizer"),
    "score": ("mvlm", "score"),
    "evaluate": ("mvlm", "evaluate"),
    "export": ("mvlm", "export"),
    "index": ("mvlm", "index"),
}
OUTPUT = {kind: "--out" for kind in PROGRAMS if kind != "score"} | {"evaluate": "--json"}
"""The option that names a step's first output; scores of rows have none, since they lie beside the rows."""
JOB = "job"
"""Folder below a step's logs for those of its ranks."""
WORKPLACE = {"shard": "--workers"}
"""The option that names how many processes a program may start."""


def interpreter(pipeline: Pipeline) -> str:
    venv = pipeline.settings.venv
    return f"{Path(venv).absolute()}/bin/python" if venv else sys.executable


def step_folder(pipeline: Pipeline, name: str) -> Path:
    """Where a step's logs go."""
    return pipeline.logs / name


def command_words(step: PipelineStep) -> list[str]:
    """The words that decide what a step makes, after `python -m`; of `command` the whole command line."""
    if step.kind == "command":
        return list(step.command)
    words = [*PROGRAMS[step.kind], *step.command]
    in_place = step.writes[0] in step.reads  # a filter such as takedown has no --out
    if (option := OUTPUT.get(step.kind)) and option not in step.command and not in_place:
        words += [option, step.writes[0]]
    return words


def program_words(step: PipelineStep) -> list[str]:
    """The same, and how many processes it may start."""
    words = command_words(step)
    if (option := WORKPLACE.get(step.kind)) and option not in step.command:
        words += [option, str(step.cpus)]
    return words


def process_words(pipeline: Pipeline, step: PipelineStep) -> list[str]:
    """The argument list of a step's process."""
    return program_words(step) if step.kind == "command" else [interpreter(pipeline), "-m", *program_words(step)]


def part_words(pipeline: Pipeline, step: PipelineStep, part: int) -> list[str]:
    """The argument list of one of the parts that share the work; the command without a part joins them."""
    return [*process_words(pipeline, step), "--part", f"{part}/{step.parts}"]


def as_job(pipeline: Pipeline, step: PipelineStep, backend: str) -> Job:
    """The step as a job, as far as a scheduler or a trainer cares."""
    settings = pipeline.settings
    by_run = step.kind in BY_RUN
    ranks = step.gpus or step.processes
    scheduled = backend == "slurm"
    limit = step.time if scheduled or step.is_job else ""
    a_quarter = (parse_time(limit) or 0) // 4
    warning = max(LEAST["warning_seconds"], min(Job.warning_seconds, a_quarter)) if limit else Job.warning_seconds
    memory = (f"--mem={step.memory}",) if step.memory and scheduled else ()
    return Job(
        name=f"{settings.name}-{step.name}",
        run=str(find_file(step.run, "configs").absolute()) if by_run else "",
        deepspeed=str(find_file(step.deepspeed, "ds_configs").absolute()) if by_run else "",
        command=tuple(program_words(step)[1:]) if step.is_job and not by_run else (),
        nodes=step.nodes,
        gpus_per_node=step.gpus,
        processes_per_node=1 if step.gpus else step.processes,
        cpus_per_process=max(1, step.cpus // ranks) if backend != "local" else 0,
        environment=pipeline.environment(step),
        venv=settings.venv if backend != "local" else "",
        modules=settings.modules if scheduled else (),
        container=step.image if backend != "local" else "",
        requeue=step.retries,
        logs=str((step_folder(pipeline, step.name) / JOB).absolute()),
        time=limit,
        warning_seconds=warning,
        partition=(step.partition or settings.partition) if scheduled else "",
        account=settings.account if scheduled else "",
        qos=settings.qos if scheduled else "",
        sbatch=(*memory, *step.sbatch) if scheduled else (),
        ray_address=settings.ray_address if backend == "ray" else "",
    )


def job_file(job: Job) -> str:
    """A job file of the same job, for a `submit` of its own."""
    unset = Job("", "", "")
    given = {name: value for name, value in vars(job).items() if value != getattr(unset, name)}
    return "\n".join(["[job]", *(f"{name} = {as_toml(value)}" for name, value in given.items())]) + "\n"


def parts_of(step: PipelineStep, backend: str) -> int:
    """Tasks that share a step's work; on this machine one process has them all."""
    return step.parts if step.kind in IN_PARTS and backend != "local" else 1
