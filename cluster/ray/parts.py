"""A command in parts on Ray: `python -m cluster.ray.parts TASKS CPUS GPUS COMMAND ...`, run by Ray's job server.

Each task runs the command with its `--part i/TASKS`, on whichever node has room; once all have ended, however they did,
the command runs without one, and does what is missing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import ray
from ray.exceptions import RayError

from mvlm.errors import first_line

RETRIES = 3
"""Of a task whose worker or node was lost."""


def main(argv: Sequence[str]) -> int:
    """Run all parts, and then what joins them; the exit code of the latter."""
    tasks, cpus, gpus = map(int, argv[:3])
    ray.init(log_to_driver=True)
    run = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_run)
    command = list(argv[3:])
    parts = [run.remote([*command, "--part", f"{part}/{tasks}"]) for part in range(1, tasks + 1)]
    for number, part in enumerate(parts, 1):
        print(f"part {number} of {tasks}: {_outcome(part)}", flush=True)
    return int(ray.get(run.remote(command)))


def _run(command: Sequence[str]) -> int:
    return subprocess.run(command).returncode


def _outcome(part: ray.ObjectRef[int]) -> str:
    try:
        return f"exit code {ray.get(part)}"
    except RayError as error:
        return f"lost ({first_line(error)})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
