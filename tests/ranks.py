"""Processes forked from a server that has imported what a run needs, which takes a new process six seconds of CPU time.

They share nothing with the process that starts them, neither settings of tests nor open files.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from time import monotonic

from mvlm.__main__ import main
from mvlm.runtime.launch import free_port

ROOT = Path(__file__).parent.parent
CONTEXT = multiprocessing.get_context("forkserver")
# Only installed packages: the server does not find the modules of tests. A run imports the last two as it builds its
# model and its engine.
CONTEXT.set_forkserver_preload(
    [
        *("hypothesis", "pytest", "data_tools.__main__", "deepspeed", "mvlm.training.fit.run"),
        *("transformers.models.roberta.modeling_roberta", "deepspeed.module_inject.auto_ep_layer"),
    ]
)


class Copy:
    """A process that calls `target` in the project's root and exits with its result.

    Args:
        environment: variables in addition to those of this process.
    """

    def __init__(self, target: Callable[..., object], *arguments: object, **environment: str) -> None:
        self._outputs = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]  # noqa: SIM115 - open as long as this object
        paths = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in self._outputs]
        variables = dict(os.environ) | environment
        self.process = CONTEXT.Process(target=_call, args=(target, arguments, paths, variables), daemon=True)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def stdout(self) -> str:
        """The output so far."""
        return self._read(0)

    @property
    def stderr(self) -> str:
        return self._read(1)

    def poll(self) -> int | None:
        """The exit code, or minus the number of the signal that killed it; None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 600) -> int:
        """The exit code; a process that takes longer than `timeout` seconds is killed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    def _read(self, which: int) -> str:
        self._outputs[which].seek(0)
        return self._outputs[which].read().decode()


def run_ranks(
    target: Callable[..., object], *arguments: object, ranks: int = 1, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Call `target` as each rank of a run; the first exit code that is not 0, and the outputs in rank order.

    As under a launcher, a rank that fails ends the others.
    """
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own = [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | environment for rank in range(ranks)]
    copies = [Copy(target, *arguments, **variables) for variables in own]
    waiting, codes, deadline = copies, [0], monotonic() + timeout
    while waiting and not any(codes):
        wait([copy.process.sentinel for copy in waiting], max(0.0, deadline - monotonic()))
        codes += [code for copy in waiting if (code := copy.poll()) is not None]
        waiting = [copy for copy in waiting if copy.poll() is None]
        if monotonic() > deadline:
            break
    codes += [copy.wait(0) for copy in waiting]
    outputs = ["".join(getattr(copy, name) for copy in copies) for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(arguments, next(filter(None, codes), 0), *outputs)


def mvlm(*words: str) -> int:
    """`python -m mvlm WORDS`, as a target."""
    sys.argv = ["mvlm", *words]
    return main()


def _call(
    target: Callable[..., object], arguments: tuple[object, ...], paths: list[str], variables: dict[str, str]
) -> None:
    gc.freeze()  # otherwise each garbage collection, of which DeepSpeed runs several, would scan all imports
    sys.stdout.flush()  # what imports printed
    for number, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None  # cached by the server
    os.chdir(ROOT)
    sys.exit(target(*arguments))
