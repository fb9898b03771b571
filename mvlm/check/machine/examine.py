"""Running probes, each in a child process that may crash or hang without taking the doctor along."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import mvlm
from mvlm.check.machine.findings import Finding, Options, broken, first_line
from mvlm.check.machine.patience import patience
from mvlm.check.machine.registry import PROBES

AT_ONCE = 4
_running: set[int] = set()
"""Process groups of probes."""
ENDING_SECONDS = 2.0
"""For a killed probe to be gone; one that waits for a dead disk cannot be killed and is left behind."""


def examine(options: Options) -> Iterator[Finding]:
    """Run the probes, several at once, and give their findings in order, as soon as each is known."""
    at_once = min(AT_ONCE, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for findings in pool.map(partial(isolated, options=options), PROBES):
                yield from findings
        finally:  # be it that the user has had enough
            pool.shutdown(wait=False, cancel_futures=True)
            for group in list(_running):
                _kill(group)


def isolated(name: str, options: Options, seconds: float | None = None) -> list[Finding]:
    """The findings of one probe, or one finding of what became of it.

    Args:
        seconds: in place of the probe's own time limit.
    """
    limit = patience(PROBES[name].seconds) if seconds is None else seconds
    words = [word for folder in options.shards for word in ("--shards", folder)]
    words += ["--run", options.run] if options.run else []
    command = [sys.executable, "-m", "mvlm.check.machine.probe", name, *words]
    with subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": _import_path()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as child:
        _running.add(child.pid)
        try:
            answer, said = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return [_end(child, name, limit)]
        finally:
            _kill(child.pid)  # and what it may have left
            _running.discard(child.pid)
    if child.returncode == 0:
        with contextlib.suppress(ValueError, TypeError):
            return [Finding(**finding) for finding in json.loads(answer)]
    return [_crash(name, child.returncode, said)]


def _import_path() -> str:
    """PYTHONPATH with which a child finds this package, behind whatever it finds now."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*([given] if given else []), str(Path(mvlm.__file__).parents[1])])


def _end(child: subprocess.Popen[str], name: str, seconds: float) -> Finding:
    _kill(child.pid)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.communicate(timeout=ENDING_SECONDS)
    if child.returncode is None:
        child.returncode = -signal.SIGKILL  # else leaving the block would wait for it
    return broken(
        name,
        f"The probe of {name} gave no answer within {seconds:.0f} s and was ended",
        f"see where `{_again(name)}` hangs, with `py-spy dump` or `strace -f`",
    )


def _crash(name: str, code: int, said: str) -> Finding:
    lines = [line for line in said.splitlines() if line.strip()]
    if code < 0:
        how = f"died of {signal.Signals(-code).name}"
        remedy = f"an extension built for other versions does so; see where in `{_again(name)}`, and install it anew"
    else:
        how = f"ended with {first_line(lines[-1]) if lines else f'exit code {code}'}"
        remedy = f"see all of it with `{_again(name)}`"
    return broken(name, f"The probe of {name} {how}", remedy)


def _again(name: str) -> str:
    return f"python -m mvlm.check.machine.probe {name}"


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
