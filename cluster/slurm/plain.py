"""The batch script of one process per node, such as a task that makes shards; `script` has that of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..job import Job
from . import launchers, options


def plain_script(job: Job, name: str, command: str, output: Path, array: str = "", dependency: str = "") -> str:
    """The script, which SLURM starts again after the loss of a node.

    Args:
        name: of the entry in SLURM's queue.
        command: a line of bash, which then replaces the script.
        array: the numbers of an array's tasks, with `output` as the log of each; "" for a single job.
        dependency: such as "afterok:17"; "" for none.
    """
    chosen: Mapping[str, str | None] = {
        "job-name": name,
        **options.placement(job),
        **({"time": job.time} if job.time else {}),
        **({"array": array} if array else {}),
        "requeue": None,
        "open-mode": "append",
        "output": str(output.parent).replace("%", "%%") + f"/{output.name}",
        **options.further(options.with_dependency(job, dependency)),
    }
    lines = [
        "#!/bin/bash",
        *options.directives(chosen),
        *options.load_modules(job).splitlines(),
        *(f"export {launchers.assignment(key, value)}" for key, value in job.environment.items()),
        f"exec {command}",
    ]
    return "\n".join(lines) + "\n"
