"""The probes of `mvlm doctor`, each run in a child process that may crash or hang without taking the doctor along.

`python -m mvlm.check.machine.probe NAME` is that child: one probe, its findings as JSON on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mvlm
from mvlm.check.folders import Folders
from mvlm.check.machine import (
    data,
    deepspeed_ops,
    devices,
    exchange,
    extensions,
    packages,
    schedulers,
    storage,
    triton_kernels,
)
from mvlm.check.machine.patience import patience
from mvlm.check.report import Finding, broken
from mvlm.errors import first_line


class Probe(NamedTuple):
    find: Callable[[Folders], Iterator[Finding]]
    seconds: float  # time limit on an idle machine: at least ten times what it takes there


PROBES = {
    "packages": Probe(packages.find, 20),
    "torch": Probe(devices.find, 60),
    "compiler": Probe(extensions.find_compiler, 60),
    "locks": Probe(extensions.find_locks, 20),
    "deepspeed": Probe(deepspeed_ops.find, 90),
    "apex": Probe(extensions.find_apex, 60),
    "triton": Probe(triton_kernels.find, 120),
    "exchange": Probe(exchange.find, 100),
    "slurm": Probe(schedulers.find_slurm, 20),
    "ray": Probe(schedulers.find_ray, 80),
    "jpeg": Probe(data.find_decoder, 30),
    "shards": Probe(data.find_shards, 300),
    "storage": Probe(storage.find, 90),
    "clock": Probe(storage.find_clock, 20),
}
"""By name, in the order in which they are reported."""

AT_ONCE = 4
_running: set[int] = set()
"""Process groups of probes."""
ENDING_SECONDS = 2.0
"""To wait for a killed probe's end; one that waits for a dead disk cannot be killed, and is left behind."""


def examine(folders: Folders) -> Iterator[Finding]:
    """Run the probes, several at once, and yield their findings in order, as soon as each is known."""
    at_once = min(AT_ONCE, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for findings in pool.map(partial(isolated, folders=folders), PROBES):
                yield from findings
        finally:  # also when the user interrupts
            pool.shutdown(wait=False, cancel_futures=True)
            for group in list(_running):
                _kill(group)


def isolated(name: str, folders: Folders, seconds: float | None = None) -> list[Finding]:
    """The findings of one probe, or a single one that says how the probe hung or crashed.

    Args:
        seconds: in place of the probe's own time limit.
    """
    limit = patience(PROBES[name].seconds) if seconds is None else seconds
    words = [word for folder in folders.shards for word in ("--shards", folder)]
    words += ["--run", folders.run] if folders.run else []
    with subprocess.Popen(
        [sys.executable, "-m", "mvlm.check.machine.probe", name, *words],
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
            _kill(child.pid)  # and any children it left
            _running.discard(child.pid)
    if child.returncode == 0:
        with contextlib.suppress(ValueError, TypeError):
            return [Finding(**finding) for finding in json.loads(answer)]
    return [_crash(name, child.returncode, said)]


def main(argv: list[str] | None = None) -> int:
    """Run one probe in this process; whatever libraries print goes to standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m mvlm.check.machine.probe", description="Run one probe of mvlm doctor."
    )
    parser.add_argument("name", choices=PROBES)
    parser.add_argument("--shards", action="append", default=[])
    parser.add_argument("--run", default="")
    args = parser.parse_args(argv)
    faulthandler.enable()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    found = [asdict(finding) for finding in PROBES[args.name].find(Folders(tuple(args.shards), args.run))]
    with answer:
        json.dump(found, answer)
    return 0


def _import_path() -> str:
    """PYTHONPATH with which a child finds this package, after what is on the path already."""
    given, own = os.environ.get("PYTHONPATH"), str(Path(mvlm.__file__).parents[1])
    return f"{given}{os.pathsep}{own}" if given else own


def _end(child: subprocess.Popen[str], name: str, seconds: float) -> Finding:
    _kill(child.pid)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.communicate(timeout=ENDING_SECONDS)
    if child.returncode is None:
        child.returncode = -signal.SIGKILL  # otherwise leaving the block would wait for it
    return broken(
        name,
        f"The probe of {name} gave no answer within {seconds:.0f} s and was ended",
        f"see where `{_command(name)}` hangs, with `py-spy dump` or `strace -f`",
    )


def _crash(name: str, code: int, said: str) -> Finding:
    lines = [line for line in said.splitlines() if line.strip()]
    if code < 0:
        how = f"died of {signal.Signals(-code).name}"
        remedy = f"an extension built for other versions can do that; find it with `{_command(name)}`, and reinstall it"
    else:
        how = f"ended with {first_line(lines[-1]) if lines else f'exit code {code}'}"
        remedy = f"see all of it with `{_command(name)}`"
    return broken(name, f"The probe of {name} {how}", remedy)


def _command(name: str) -> str:
    return f"python -m mvlm.check.machine.probe {name}"


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # libraries that were probed may hang at exit
