"""The driver of a pipeline on Ray, run by Ray's job server: `python -m cluster.pipeline.ray_driver LOGS`.

A step, or a part of one, is a task that runs the step's process wherever Ray has room; one whose node is lost is given
out again, and goes on with what is done. What has ranks has a driver of its own, beside this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, TaskCancelledError

from mvlm.errors import ExitCode, first_line

from ..attempt import shell_code
from . import step as step_module
from .executor import Executor, RunningStep
from .file import PipelineStep, memory_bytes
from .local import StepProcess
from .submission import Submission
from .words import parts_of

RETRIES = 5
"""Of a task whose worker or node was lost."""


def main(argv: Sequence[str]) -> int:
    """Run the queued steps; the exit code is the executor's."""
    submission = Submission.load(Path(argv[0]))
    os.chdir(submission.directory)
    graph = submission.graph()
    steps = graph.pipeline.steps
    try:
        ray.init(log_to_driver=True)
    except Exception as error:  # Ray raises plain ones where a part of it does not come up in time
        reason = first_line(error)
        print(f"cluster: Ray cannot be joined on this node ({reason}): see `ray status`, and submit again.", flush=True)
        return ExitCode.REQUEUE

    def start(name: str, part: int) -> RunningStep:
        if steps[name].is_job or steps[name].kind == "preflight":
            return StepProcess(submission, name)
        return StepTask(submission, steps[name], part)

    # Ray itself queues what has no room yet
    return Executor(submission, start, lambda name: parts_of(steps[name], "ray"), lambda *_: True).run()


class StepTask:
    """A step's process on whichever node has room."""

    def __init__(self, submission: Submission, step: PipelineStep, part: int) -> None:
        room: dict[str, Any] = {"num_cpus": step.cpus, "num_gpus": step.gpus, "max_retries": RETRIES, "name": step.name}
        if step.memory:
            room["memory"] = memory_bytes(step.memory)
        words = [sys.executable, "-m", step_module.__name__, submission.logs, step.name]
        self._task: Any = ray.remote(_run).options(**room).remote([*words, *(["--part", str(part)] if part else [])])
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None and ray.wait([self._task], timeout=0)[0]:
            try:
                self._code = int(ray.get(self._task))
            except TaskCancelledError:
                self._code = ExitCode.REQUEUE
            except RayError as error:
                print(f"cluster: {first_line(error)}", flush=True)
                self._code = ExitCode.BUG
        return self._code

    def stop(self) -> None:
        ray.cancel(self._task, force=False)


def _run(words: Sequence[str]) -> int:
    """Run a step's process to its end; a cancelled task, which Ray interrupts, has it save and end."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL) as process:
        try:
            return shell_code(process.wait())
        except KeyboardInterrupt:
            process.terminate()
            return shell_code(process.wait())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
