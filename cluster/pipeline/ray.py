"""Pipelines on Ray: one job, whose driver gives the steps to Ray as tasks and trains beside itself."""

from __future__ import annotations

import os
import secrets
import shlex
from dataclasses import replace
from pathlib import Path

from mvlm.errors import UserError

from ..job import Job
from ..ray import backend as ray_backend
from ..ray import client
from . import local
from .graph import Graph
from .submission import FILE, Submission
from .words import as_job, interpreter, parts_of, process_words

SOME_ADDRESS = "http://127.0.0.1:8265"


def check(graph: Graph) -> list[str]:
    """What this back-end cannot do, as sentences."""
    found = []
    for name, step in graph.pipeline.steps.items():
        if step.image:  # ranks are driven from within the pipeline's job, whose environment they have
            found.append(f"{name}.image is {step.image!r}, which a pipeline on Ray cannot honour: remove it.")
        if step.is_job:
            try:
                job = as_job(graph.pipeline, step, "ray")
                # With some address, since the question is only whether Ray can do it.
                ray_backend.render(replace(job, ray_address=job.ray_address or SOME_ADDRESS), step.overrides)
            except UserError as error:
                found.append(f"{name}: {error}")
    return found


def render(graph: Graph, submission: Submission) -> str:
    """The driver's command, and those of the steps."""
    lines = [f"entrypoint: {shlex.join(_entrypoint(graph, submission))}"]
    for name in submission.queued:
        step = graph.pipeline.steps[name]
        if step.is_job or step.kind == "preflight":
            lines.append(local.render(graph, replace(submission, queued={name: submission.queued[name]})))
            continue
        parts = parts_of(step, "ray")
        amount = f"{step.cpus} CPU" + (f", {step.gpus} GPU" if step.gpus else "")
        shared = f", {parts} tasks and one that joins them" if parts > 1 else ""
        lines.append(f"# {name}, {amount}{shared}\n{shlex.join(process_words(graph.pipeline, step))}")
    return "\n".join(lines)


def submit(graph: Graph, submission: Submission) -> int:
    """Hand the pipeline to Ray's job server, and return as soon as that has it; but see `client.outcome`.

    Raises:
        UserError: there is none, or it refuses.
    """
    settings = graph.pipeline.settings
    submission.server = client.address(Job("", "", "", ray_address=settings.ray_address))
    server = client.connect(submission.server)
    variables = ray_backend.RAY_VARIABLES | {"PYTHONPATH": client.import_path(), client.ADDRESS: submission.server}
    variables |= {name: value for name, value in os.environ.items() if name == "OMP_NUM_THREADS"}
    submission.job = f"{settings.name}-{secrets.token_hex(4)}"
    submission.save()
    with client.refusals_as_mistakes():
        server.submit_job(
            entrypoint=shlex.join(_entrypoint(graph, submission)),
            submission_id=submission.job,
            runtime_env={"env_vars": variables},
            metadata={"pipeline": settings.name},
        )
    said = f"submitted {settings.name} as {submission.job} to {submission.server}; its logs go to {submission.logs}"
    print(said, flush=True)
    return client.outcome(server, submission.job)


def state(submission: Submission) -> str:
    """Ray's word for the state of the driver's job; "" if this cluster does not know it.

    Raises:
        UserError: no job server answers.
    """
    return client.job_state(client.connect(submission.server), submission.server, submission.job)[0]


def is_active(submission: Submission) -> bool:
    return bool(submission.job) and state(submission) in client.ACTIVE


def refuse_second(submission: Submission, keys: dict[str, str]) -> None:
    """Raises `UserError` if its driver runs, as far as is known."""
    if submission.job:
        record = Path(submission.logs) / FILE
        client.refuse_second(submission.server, submission.job, submission.path, record)


def cancel(submission: Submission) -> str:
    """Have the driver stop its steps, which save and end.

    Raises:
        UserError: it is not running.
    """
    if not is_active(submission):
        raise UserError(f"{submission.path} is not running: there is nothing to cancel.")
    with client.refusals_as_mistakes():
        client.connect(submission.server).stop_job(submission.job)
    return f"{submission.job} is told to end"


def _entrypoint(graph: Graph, submission: Submission) -> list[str]:
    return [interpreter(graph.pipeline), "-m", f"{__package__}.ray_driver", submission.logs]
