"""Pipelines on SLURM: a job for each step, submitted at once; nothing stays running on the login node."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection
from dataclasses import replace

from mvlm.errors import UserError

from ..job import Job
from ..record import write_private
from ..slurm import backend, queue
from ..slurm.options import with_dependency
from ..slurm.plain import plain_script
from ..slurm.queue import QueueEntry
from . import step as step_module
from .graph import Graph
from .proof import keys
from .submission import Submission, is_settled, settle
from .view import QueueAnswer, attempts
from .words import JOB, as_job, interpreter, parts_of

NEVER = ("DependencyNeverSatisfied", "launch failed requeued held")
"""Why a job stays in the queue until somebody removes it; the latter if a controller ended while it launched one."""
PARTS, WHOLE = "parts.sbatch", "step.sbatch"


def check(graph: Graph) -> list[str]:
    """What this back-end cannot do, as sentences."""
    return [
        f"{name}: {error}"
        for name, step in graph.pipeline.steps.items()
        if (error := _refusal(as_job(graph.pipeline, step, "slurm"), graph, name))
    ]


def _refusal(job: Job, graph: Graph, name: str) -> str:
    step = graph.pipeline.steps[name]
    try:
        if step.is_job:
            backend.render(job, step.overrides)
        else:
            plain_script(job, job.name, "true", job.log_folder)
    except UserError as error:
        return str(error)
    return ""


def scripts(graph: Graph, submission: Submission, name: str, after: Collection[str]) -> list[tuple[str, str]]:
    """File names and batch scripts of a step: of the array of its parts, if it has any, and of the whole.

    The whole waits for the array, however that ends; ARRAY stands for its id.

    Args:
        after: ids of the jobs that must succeed before.
    """
    pipeline, step = graph.pipeline, graph.pipeline.steps[name]
    job = as_job(pipeline, step, "slurm")
    folder = submission.folder(name)
    dependency = "afterok:" + ":".join(after) if after else ""
    if step.is_job:
        return [(WHOLE, backend.render(with_dependency(job, dependency), step.overrides))]
    job = replace(job, environment={})  # the step's process reads it, and its secrets
    words = shlex.join([interpreter(pipeline), "-m", step_module.__name__, submission.logs, name])
    parts = parts_of(step, "slurm")
    found = []
    if parts > 1:
        command, log = f'{words} --part "$SLURM_ARRAY_TASK_ID"', folder / "parts-%a.log"
        found.append((PARTS, plain_script(job, job.name, command, log, f"1-{parts}", dependency)))
        dependency = ",".join(filter(None, [dependency, "afterany:ARRAY"]))
    name_in_queue = f"{job.name}-join" if parts > 1 else job.name
    return [*found, (WHOLE, plain_script(job, name_in_queue, words, folder / "step.log", "", dependency))]


def render(graph: Graph, submission: Submission) -> str:
    """All scripts, with the names of steps in place of ids."""
    texts = []
    for name, queued in submission.queued.items():
        texts += [text for _, text in scripts(graph, submission, name, queued.needs)]
    return "\n".join(texts)


def submit(graph: Graph, submission: Submission) -> int:
    """Put all queued steps into SLURM's queue.

    Raises:
        UserError: SLURM is not here or refuses one; those before it are taken out again.
    """
    queue.require("sbatch")
    try:
        for name, queued in submission.queued.items():
            if not queued.jobs:
                _submit_step(graph, submission, name)
                submission.save()
    except UserError:
        for queued in submission.queued.values():
            for job in queued.jobs:
                queue.remove(job)
        raise
    for name, queued in submission.queued.items():
        print(f"{name} is {'job' if len(queued.jobs) == 1 else 'jobs'} {', '.join(queued.jobs)}")
    return 0


def _submit_step(graph: Graph, submission: Submission, name: str) -> None:
    queued = submission.queued[name]
    after = [submission.queued[need].jobs[-1] for need in queued.needs]
    for file, text in scripts(graph, submission, name, after):
        folder = submission.folder(name)
        (folder / JOB).mkdir(parents=True, exist_ok=True)
        script = text.replace("afterany:ARRAY", f"afterany:{queued.jobs[0]}") if queued.jobs else text
        write_private(folder / file, script)
        queued.jobs.append(queue.submit(folder / file))


def answers(submission: Submission) -> dict[str, QueueAnswer]:
    """What the queue says about the steps that are in it.

    Raises:
        UserError: SLURM is not here or does not answer.
    """
    found: dict[str, QueueAnswer] = {}
    for name, entry in _entries(submission):
        if name in found and found[name].state == "running":
            continue
        if entry.reason in NEVER:
            found[name] = QueueAnswer("failed", entry.reason)
        elif entry.waits:
            found[name] = QueueAnswer("waiting", entry.reason)
        else:
            found[name] = QueueAnswer("running", f"on {entry.nodes}")
    return found


def _entries(submission: Submission) -> list[tuple[str, QueueEntry]]:
    """Each step's entries in the queue, with those of its parts and of the job that joins them."""
    ids = {job: name for name, queued in submission.queued.items() for job in queued.jobs}
    found = queue.queued(",".join(ids)) if ids else []
    return [(ids[job], entry) for entry in found if (job := entry.id.partition("_")[0]) in ids]


def refuse_second(submission: Submission, keys: dict[str, str]) -> None:
    """Raises `UserError` if steps of it are in the queue."""
    waiting = answers(submission)
    if waiting:
        raise UserError(
            f"{submission.path} is in the queue already, with {', '.join(waiting)}: cancel it, or use rerun STEP."
        )


def settle_ended(graph: Graph, submission: Submission) -> None:
    """Write the proofs of jobs that have succeeded, if no step after them has begun, which would have written them."""
    now = keys(graph)
    for name, queued in submission.queued.items():
        step = graph.pipeline.steps.get(name)
        if step and step.is_job and now[name] == queued.key and not is_settled(graph, submission, name):
            last = attempts(submission, name)[-1:]
            if last and last[0].exit_code == 0:
                with contextlib.suppress(UserError):  # its output is gone: it is done again
                    settle(graph, submission, name)


def clear(submission: Submission, names: Collection[str]) -> None:
    """Take steps out of the queue, even if they run."""
    for name in names:
        if queued := submission.queued.get(name):
            for job in queued.jobs:
                queue.remove(job)
            queued.jobs = []


def cancel(submission: Submission) -> str:
    """Have the steps that run save and end, and take those that wait out of the queue.

    Raises:
        UserError: none is in the queue.
    """
    found = _entries(submission)
    if not found:
        raise UserError(f"{submission.path} is not in the queue: there is nothing to cancel.")
    # waiting jobs first: one that joins parts would begin as soon as they have ended
    for _, entry in sorted(found, key=lambda one: not one[1].waits):
        if entry.waits:
            queue.remove(entry.id)
        else:
            queue.forbid_requeue(entry.id)
            queue.signal_batch(entry.id)
    return f"told to end: {', '.join(dict.fromkeys(name for name, _ in found))}"
