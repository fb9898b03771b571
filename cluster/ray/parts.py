"""A command in parts on Ray: `python -m cluster.ray.parts TASKS CPUS GPUS COMMAND ...`, run by Ray's job server.

Each task runs the command with its `--part i/TASKS`, on whichever node has room; once all have ended, however they did,
the command runs without one, and does what is missing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import ray

from .process import POLL_SECONDS, RemoteProcess


def main(argv: Sequence[str]) -> int:
    """Run all parts, and then what joins them; the exit code of the latter."""
    tasks, cpus, gpus = map(int, argv[:3])
    ray.init(log_to_driver=True)
    command = list(argv[3:])
    parts = {
        part: RemoteProcess([*command, "--part", f"{part}/{tasks}"], f"part {part}", cpus, gpus)
        for part in range(1, tasks + 1)
    }
    while parts:
        for part, running in list(parts.items()):
            if (code := running.poll()) is not None:
                print(f"part {part} of {tasks}: exit code {code}", flush=True)
                del parts[part]
        time.sleep(POLL_SECONDS)
    return RemoteProcess(command, "join", cpus, gpus).wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
