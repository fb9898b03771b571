"""What a job asks of SLURM, as options that sbatch, srun and submitit all know, and how every batch script begins."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace

from mvlm.errors import ExitCode, UserError

from ..job import Job

OURS = ("requeue", "no-requeue", "open-mode", "signal", "output", "error", "array", "wrap", "wait", "parsable", "chdir")
"""Options of sbatch that the job's script depends on."""

PLAIN = re.compile(r"[\w@%+=:,./\[\]-]+", re.ASCII)


def placement(job: Job) -> dict[str, str]:
    """Nodes, what they must have, and who pays."""
    nodes = f"{job.min_nodes}-{job.nodes}" if 0 < job.min_nodes < job.nodes else str(job.nodes)
    found = {"nodes": nodes, "ntasks-per-node": str(job.ranks_per_node)}
    if job.cpus_per_process:
        found["cpus-per-task"] = str(job.cpus_per_process)
    if job.gpus_per_node and job.gpu_request == "gres":
        found["gres"] = f"gpu:{job.gpus_per_node}"
    elif job.gpus_per_node and job.gpu_request == "gpus-per-task":
        found["gpus-per-task"] = "1"
    elif job.gpus_per_node:
        found["gpus-per-node"] = str(job.gpus_per_node)
    return found | {name: value for name in ("partition", "account", "qos") if (value := getattr(job, name))}


def further(job: Job) -> dict[str, str | None]:
    """The options of `job.sbatch`; None for those without a value.

    Raises:
        UserError: one is not an option, or not the user's to set.
    """
    found: dict[str, str | None] = {}
    for option in job.sbatch:
        parts = re.fullmatch(r"--([a-z][a-z-]*)(?:=(.*))?", option)
        if not parts:
            raise UserError(f"sbatch has {option!r}: write --name or --name=value, each a word of the list.")
        if parts[1] in OURS:
            raise UserError(f"sbatch has {option!r}, which the job's script sets itself: remove it.")
        name, value = parts.groups()
        found[name] = f"{found[name]},{value}" if name == "dependency" and name in found else value  # sbatch takes one
    return found


def with_dependency(job: Job, dependency: str) -> Job:
    """The job with a dependency among its options, beside the user's own."""
    return replace(job, sbatch=(*job.sbatch, f"--dependency={dependency}")) if dependency else job


def directives(chosen: Mapping[str, str | None]) -> list[str]:
    """The lines of a batch script that sbatch reads; None for options without a value."""
    return [
        f"#SBATCH --{name}" if value is None else f"#SBATCH --{name}={_directive(value)}"
        for name, value in chosen.items()
    ]


def _directive(value: str) -> str:
    """A value as sbatch reads it: unlike in a shell, a backslash is special in quotes of either kind."""
    if PLAIN.fullmatch(value) or not value:
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def load_modules(job: Job) -> str:
    """Lines to run before `set -u`, which the scripts of modules do not tolerate."""
    if not job.modules:
        return ""
    return (
        'type module >/dev/null 2>&1 || source "${MODULESHOME:-/usr/share/modules}/init/bash"\n'
        f"{shlex.join(['module', 'load', *job.modules])} || exit {ExitCode.MISTAKE}\n"
    )
