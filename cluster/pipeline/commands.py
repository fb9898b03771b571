"""The commands of `mvlm-cluster` for a pipeline: what they do with a file that has [[step]], or with its logs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from mvlm.errors import UserError

from ..job import check_venv
from ..logs import attempt_numbers, show
from ..record import claim
from . import local, plan, ray, slurm
from .check import check as check_steps
from .file import check_secrets, load_pipeline
from .graph import Graph
from .page import write_page
from .proof import keys, proof_path, read_proof
from .submission import FILE, Submission, draft, prepare
from .view import ENDED, StepView, as_facts, as_table, log_place, views

BACKENDS = {"local": local, "slurm": slurm, "ray": ray}
FOLLOW_SECONDS = 2.0


def submit(path: str, overrides: list[str], backend: str, forced: Collection[str] = ()) -> int:
    """Check every step, and run or queue those that are not proven unchanged.

    Args:
        forced: steps to do again with all that depends on them.

    Raises:
        UserError: a step could not begin, the pipeline runs already, or it has no such step.
    """
    graph = _read(path, overrides)
    for name in forced:
        if name not in graph.order:
            raise UserError(f"{path} has no step {name}: it has {', '.join(graph.order)}.")
    if (graph.pipeline.logs / FILE).exists():
        old = Submission.load(graph.pipeline.logs)
        if old.backend == "slurm":
            slurm.settle_ended(graph, old)
    check_steps(graph, draft(graph, overrides, backend, forced), BACKENDS[backend].check(graph))
    with claim(graph.pipeline.logs, "pipeline"):
        return _submit_claimed(graph, draft(graph, overrides, backend, forced), forced)


def _submit_claimed(graph: Graph, new: Submission, forced: Collection[str]) -> int:
    _carry_over(graph, new, forced)
    _refuse_others(graph, new)
    unchanged = [name for name in new.order if name not in new.queued]
    if unchanged:
        print(f"unchanged: {', '.join(unchanged)}")
    prepare(graph, new, forced)
    new.save()
    code = BACKENDS[new.backend].submit(new.graph(), new) if new.queued else 0
    page = write_page(Path(new.logs))
    print(f"{page} shows how it stands" if new.queued else "every step is done and unchanged: there is nothing to do")
    return code


def _carry_over(graph: Graph, new: Submission, forced: Collection[str]) -> None:
    """Refuse to continue while an earlier submission runs; a rerun on SLURM leaves all other steps in the queue."""
    logs = Path(new.logs)
    if not (logs / FILE).exists():
        return
    old = Submission.load(logs)
    if not forced or old.backend != "slurm" or new.backend != "slurm":
        BACKENDS[old.backend].refuse_second(old, keys(graph))
        return
    again = graph.with_dependents(forced)
    in_queue = [name for name in slurm.answers(old) if name not in again]
    slurm.clear(old, again)
    for name in in_queue:
        if name in new.queued and new.queued[name].key == old.queued[name].key:
            new.queued[name] = replace(old.queued[name], needs=new.queued[name].needs)


def _refuse_others(graph: Graph, new: Submission) -> None:
    """Raises `UserError` if another pipeline that is under way makes what a step of this one would move aside."""
    for name in new.queued:
        proof = read_proof(proof_path(graph, name))
        if proof and proof.logs not in ("", new.logs) and (Path(proof.logs) / FILE).exists():
            other = Submission.load(Path(proof.logs))
            try:
                BACKENDS[other.backend].refuse_second(other, {})
            except UserError as error:
                place = ", ".join(graph.pipeline.steps[name].writes)
                raise UserError(f"{name} would write {place}, which another pipeline makes: {error}") from None


def render(path: str, overrides: list[str], backend: str) -> str:
    """What submit would run."""
    graph = _read(path, overrides)
    return BACKENDS[backend].render(graph, draft(graph, overrides, backend))


def check(path: str, overrides: list[str], backend: str) -> int:
    """Check every step, as submit does first."""
    graph = _read(path, overrides)
    check_steps(graph, draft(graph, overrides, backend), BACKENDS[backend].check(graph))
    return 0


def show_plan(path: str, overrides: list[str]) -> int:
    """Print hours and cost of what would run."""
    graph = _read(path, overrides)
    print(plan.as_text(graph, plan.plans(graph, draft(graph, overrides, "local"))))
    return 0


def rerun(logs: Path, names: list[str]) -> int:
    """Submit again as before, and do some steps again with all that depends on them.

    Raises:
        UserError: see `submit`.
    """
    submission = _enter(logs)
    return submit(submission.path, submission.overrides, submission.backend, names)


def _read(path: str, overrides: list[str]) -> Graph:
    """The graph of what is to run, after checking its secrets, which are not needed to look at what runs already."""
    pipeline = load_pipeline(path, overrides)
    check_secrets(pipeline)
    check_venv(pipeline.settings.venv, f"{path}: pipeline")
    return Graph(pipeline)


def status(logs: Path, as_json: bool) -> int:
    """Print the state of each step, and draw it."""
    submission = _enter(logs)
    found = _views(submission)
    print(json.dumps(as_facts(submission, found), indent=1) if as_json else as_table(found))
    page = write_page(logs, found)
    if not as_json:
        print(f"\n{page} shows the same as a picture")
        if submission.backend == "local" and local.is_elsewhere(submission):
            print(f"it was submitted on {submission.host}; ask there whether it is alive")
    return 0


def show_logs(logs: Path, follow: bool, names: list[str]) -> int:
    """Print the logs of some steps, or of all; `follow` takes one."""
    submission = _enter(logs)
    chosen = names or [name for name in submission.order if name in submission.queued]
    if follow and len(chosen) != 1:
        raise UserError(f"Name the one step to follow, of {', '.join(submission.order)}: logs -f PIPELINE STEP.")
    for name in chosen:
        folder = submission.folder(name)
        if name not in submission.order:
            raise UserError(f"{submission.path} has no step {name}: it has {', '.join(submission.order)}.")

        def unfinished(name: str = name) -> bool:
            return follow and any(view.name == name and view.state not in ENDED for view in _views(submission))

        while unfinished() and not attempt_numbers(log_place(submission, name)):  # known when it begins
            time.sleep(FOLLOW_SECONDS)
        for place in (log_place(submission, name), *sorted(folder.glob("part-*"))):
            show(place, unfinished, FOLLOW_SECONDS)
    return 0


def cancel(logs: Path) -> int:
    """Have the running steps save and end."""
    submission = _enter(logs)
    print(BACKENDS[submission.backend].cancel(submission))
    write_page(logs)
    return 0


def _enter(logs: Path) -> Submission:
    """The submission; makes the folder that its paths count from the current one."""
    submission = Submission.load(logs)
    os.chdir(submission.directory)
    return submission


def _views(submission: Submission) -> list[StepView]:
    graph = submission.graph()
    if submission.backend == "slurm":
        return views(graph, submission, slurm.answers(submission), active=False)  # what is not in the queue has ended
    if submission.backend == "ray":
        return views(graph, submission, active=ray.is_active(submission))
    active = submission.is_driven or bool(local.live(submission)) or local.is_elsewhere(submission)
    return views(graph, submission, active=active)
