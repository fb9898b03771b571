"""Before a job is queued: what `mvlm check` says about its run, in the job's own interpreter."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator
from typing import Any

from mvlm.errors import UserError
from mvlm.runtime.log import logger

from .command_lines import require_works
from .environment import check_references, for_process, inherited, python
from .job import Job, out_of_sight
from .sweep import override

PATH = re.compile(r"(?<![\w/.:])/[^\s:;,'\")]+")


def check_run(job: Job, overrides: list[str], here: bool, missing: Collection[str] = ()) -> None:
    """Refuse a run that could not begin, and print warnings about one that can.

    A path on a disk that this machine does not have is only a warning: the nodes may have it.

    Args:
        here: the run is trained on this machine, so that there is no such disk.
        missing: paths that do not exist yet, but will when the run begins.

    Raises:
        UserError: with a line for each thing that is wrong.
    """
    check_references(job.environment, "job.environment")
    if job.command:
        _check_command(job, overrides)
        return
    interpreter, doubt = _interpreter(job)
    wrong: list[str] = []
    warnings = [doubt] if doubt else []
    for words in _runs(job, overrides):
        for finding in _findings(interpreter, job, words, warnings):
            sentence, verdict = finding["sentence"], finding["verdict"]
            if verdict == "wrong" and any(path in sentence for path in missing):
                continue
            if verdict == "wrong" and not here and any(out_of_sight(path) for path in PATH.findall(sentence)):
                warnings.append(f"not visible from this machine, so not checked: {sentence}")
            elif verdict == "wrong":
                wrong.append(sentence)
            elif verdict == "warning":
                warnings.append(sentence)
    for sentence in dict.fromkeys(warnings):
        logger("cluster").warning(f"warning: {sentence}")
    if wrong:
        raise UserError("\n  ".join(["The run cannot begin, as `mvlm check` says:", *dict.fromkeys(wrong)]))


def _check_command(job: Job, overrides: list[str]) -> None:
    if overrides:
        raise UserError(f"{overrides[0]} is a setting of a run, and the job has none: put it into job.command.")
    require_works(["mvlm", *job.command], "job.command")


def command(interpreter: str, job: Job, overrides: list[str]) -> list[str]:
    """The argument list of the check."""
    ranks = str(job.nodes * job.ranks_per_node)
    check = [interpreter, "-m", "mvlm", "check", job.run, "--deepspeed_config", job.deepspeed, "--world", ranks]
    return [*check, "--json", *overrides]


def _interpreter(job: Job) -> tuple[str, str]:
    """The interpreter that checks the run, and a warning if it is not the job's own."""
    own = str(python(job))
    if not job.container and os.access(own, os.X_OK):
        return own, ""
    where = f"the image {job.container}" if job.container else own
    return sys.executable, f"{where} is not visible from this machine: the run is checked by {sys.executable}."


def _runs(job: Job, overrides: list[str]) -> Iterator[list[str]]:
    """The words of the run; for a sweep, of as many runs as it takes to try each value once."""
    values = job.sweep.values if job.sweep else {}
    for number in range(max(map(len, values.values()), default=1)):
        yield [*overrides, *(override(name, tried[number % len(tried)]) for name, tried in values.items())]


def _findings(interpreter: str, job: Job, overrides: list[str], warnings: list[str]) -> list[dict[str, Any]]:
    argv = command(interpreter, job, overrides)
    ended = subprocess.run(
        argv, env=inherited() | for_process(job), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    try:
        return json.loads(ended.stdout)["findings"]
    except (ValueError, KeyError, TypeError):
        reason = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
    if job.modules or interpreter != str(python(job)):  # the nodes may have what is missing here
        warnings.append(f"The run could not be checked from this machine ({reason}).")
        return []
    raise UserError(f"The run cannot be checked ({reason}): see what `{shlex.join(argv)}` says.")
