"""What is wrong with the steps of a pipeline, before anything is queued."""

from __future__ import annotations

import os
from pathlib import Path

from mvlm.errors import Mistakes, UserError
from mvlm.runtime.log import logger
from mvlm.runtime.wording import counted

from ..check import check_run
from ..command_lines import refused
from .file import BY_RUN
from .graph import Graph
from .submission import Submission, own_outputs
from .words import as_job, program_words


def check_words(graph: Graph) -> list[str]:
    """What the programs of the steps object to in their command lines, as sentences."""
    steps = graph.pipeline.steps
    words = {name: program_words(step) for name, step in steps.items() if step.kind not in (*BY_RUN, "command")}
    return [
        f"{name}.command is not a command line that works ({reason.rpartition('error: ')[2]})."
        for name, reason in refused(words).items()
    ]


def check_places(graph: Graph) -> list[str]:
    """An output is moved aside when it is made again, so the folders that would be lost with it must not lie in it."""
    lost = {"the folder of this command": Path.cwd(), "pipeline.logs": graph.pipeline.logs.absolute()}
    return [
        f"{name}.writes has {path}, which contains {what}, {place}: give one of them another place."
        for name in graph.order
        for path in own_outputs(graph, name)
        for what, place in lost.items()
        if "://" not in path and place.is_relative_to(os.path.abspath(path))
    ]


def check_runs(graph: Graph, submission: Submission) -> list[str]:
    """What `mvlm check` says about the queued runs, as sentences, except about what other steps are still to make."""
    found = []
    for name in submission.queued:
        step = graph.pipeline.steps[name]
        if step.kind not in BY_RUN:
            continue
        job = as_job(graph.pipeline, step, submission.backend)
        missing = [path for path in graph.reads[name] if any(made in submission.queued for made in graph.made(path))]
        try:
            check_run(job, step.overrides, here=submission.backend == "local", missing=missing)
        except UserError as error:
            found.append(f"{name}: {error}")
    return found


def check(graph: Graph, submission: Submission, own: list[str]) -> None:
    """Refuse a pipeline with a step that could not begin.

    Args:
        own: what the back-end cannot do.

    Raises:
        UserError: with a sentence for each thing that is wrong.
    """
    mistakes = Mistakes()
    for sentence in (*own, *check_places(graph), *check_words(graph)):
        mistakes.add(f"{graph.pipeline.path}: {sentence}")
    mistakes.settle()
    for sentence in check_runs(graph, submission):
        mistakes.add(f"{graph.pipeline.path}: {sentence}")
    mistakes.settle()
    logger("cluster").info(f"{counted(len(graph.order), 'step')} checked, {len(submission.queued)} to run")
