"""The driver of a pipeline on Ray, run by Ray's job server: `python -m cluster.pipeline.ray_driver LOGS`.

A step, or a part of one, is a process wherever Ray has room; if its node is lost, it is started again elsewhere, and
continues from what is done. A step with ranks has a driver of its own, beside this one. If this one is killed, all of
them save and end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import ray

from mvlm.errors import ExitCode, first_line
from mvlm.runtime.launch import end_with_parent

from ..processes import PATIENCE, Stopper
from ..ray.process import RemoteProcess
from . import step as step_module
from .executor import Executor, RunningStep
from .file import PipelineStep, memory_bytes
from .local import StepProcess
from .submission import Submission
from .words import parts_of


def main(argv: Sequence[str]) -> int:
    """Run the queued steps; the exit code is the executor's."""
    end_with_parent()  # Ray's shell: once it is gone, Ray takes the job for failed
    submission = Submission.load(Path(argv[0]))
    os.chdir(submission.directory)
    graph = submission.graph()
    steps = graph.pipeline.steps
    try:
        ray.init(log_to_driver=True)
    except Exception as error:  # Ray raises bare ones if a part of it does not come up in time
        reason = first_line(error)
        print(f"cluster: Ray cannot be joined on this node ({reason}): see `ray status`, and submit again.", flush=True)
        return ExitCode.REQUEUE

    def start(name: str, part: int) -> RunningStep:
        if steps[name].is_job or steps[name].kind == "preflight":
            Stopper(submission.folder(name)).end(PATIENCE)  # what a killed driver has left, which saves
            return StepProcess(submission, name, ends_with_driver=True)
        return _elsewhere(submission, steps[name], part)

    # Ray itself queues what has no room yet
    return Executor(submission, start, lambda name: parts_of(steps[name], "ray"), lambda *_: True).run()


def _elsewhere(submission: Submission, step: PipelineStep, part: int) -> RemoteProcess:
    """A step's process on whichever node has room."""
    words = [sys.executable, "-m", step_module.__name__, submission.logs, step.name]
    own = ["--part", str(part)] if part else []
    memory = memory_bytes(step.memory) if step.memory else 0
    return RemoteProcess([*words, *own], f"{step.name} {part}", step.cpus, step.gpus, memory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
