"""What is wrong with the steps of a pipeline, before anything is queued."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

from mvlm.config.shipped import package
from mvlm.errors import Mistakes, UserError
from mvlm.runtime.log import logger

from ..check import check_run
from ..environment import inherited
from ..ray.client import import_path
from .file import BY_RUN
from .graph import Graph
from .submission import Submission
from .words import as_job, program_words

PARSE = f"""
import contextlib, io, json, sys
from {package("data_tools")}.__main__ import parser
from mvlm.__main__ import command_line
for name, words in json.load(sys.stdin).items():
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            if words[0] == "mvlm":
                command_line(words[1:]).parse_args(words[1:])
            else:
                parser().parse_args(words[1:])
    except SystemExit as end:
        if end.code:
            print(json.dumps([name, said.getvalue().strip().splitlines()[-1]]))
    except Exception as error:
        print(json.dumps([name, str(error)]))
"""
"""Reads the command lines of steps as their programs will: an unknown option is found before hours of other steps."""


def check_words(graph: Graph) -> list[str]:
    """What the programs of the steps say of their command lines, as sentences."""
    steps = graph.pipeline.steps
    words = {name: program_words(step) for name, step in steps.items() if step.kind not in (*BY_RUN, "command")}
    return [
        f"{name}.command is no command line that works ({reason.rpartition('error: ')[2]})."
        for name, reason in refused(words).items()
    ]


def refused(words: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Of command lines of ours, by name, those that their parsers refuse, and why.

    Raises:
        UserError: the parsers cannot be asked.
    """
    if not words:
        return {}
    environment = inherited() | {"PYTHONPATH": import_path()}
    asked = [sys.executable, "-c", PARSE]
    done = subprocess.run(asked, input=json.dumps(words), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(f"The commands of the steps cannot be checked: {done.stderr.strip().splitlines()[-1]}.")
    return dict(json.loads(line) for line in done.stdout.splitlines())


def check_runs(graph: Graph, submission: Submission) -> list[str]:
    """What `mvlm check` says of the runs that are queued, as sentences; not of what other steps are still to make."""
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
    """Refuse a pipeline of which a step could not begin.

    Args:
        own: what the back-end cannot do.

    Raises:
        UserError: with a sentence for each thing that is wrong.
    """
    mistakes = Mistakes()
    for sentence in (*own, *check_words(graph)):
        mistakes.add(f"{graph.pipeline.path}: {sentence}")
    mistakes.settle()
    for sentence in check_runs(graph, submission):
        mistakes.add(f"{graph.pipeline.path}: {sentence}")
    mistakes.settle()
    logger("cluster").info(f"{len(graph.order)} steps are checked, {len(submission.queued)} of them to run")
