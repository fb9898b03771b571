"""Loader processes, one for each thread that asks: an interpreter of its own, for what holds the lock too long."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

from mvlm.data.buffers import Buffer
from mvlm.data.prepare import Draw, Samples
from mvlm.data.rows import Sample
from mvlm.errors import UserError

S = TypeVar("S", bound=Sample)

SECONDS_TO_END = 10.0


class Processes(Generic[S]):
    """Prepares samples in the process of the thread that calls, which is started at its first call.

    Args:
        dataset: must be picklable, and so must be what it imports without torch.
    """

    def __init__(self, dataset: Samples[S]):
        self._dataset = dataset
        self._own = threading.local()
        self._all: list[tuple[subprocess.Popen[bytes], Connection]] = []

    def prepare(self, draws: Sequence[Draw], buffer: Buffer, first: int) -> list[S]:
        """As `mvlm.data.prepare.prepare`, into a shared buffer from its sample `first` on.

        Raises:
            UserError: as the data set does, or because the process was killed.
        """
        if not hasattr(self._own, "process"):
            self._own.process = self._start()
        process, connection = self._own.process
        for _, row, _ in draws:  # here, since clients of object stores are too large for a loader process
            self._dataset.bring(row)
        try:
            connection.send((buffer.file, buffer.images_VBCHW.shape, first, draws))
            answer = connection.recv()
        except (EOFError, ConnectionError):
            raise _death(process.wait()) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End all processes; no thread may be in `prepare`."""
        for process, connection in self._all:
            connection.close()
            assert process.stdin
            process.stdin.close()
        for process, _ in self._all:
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._all.clear()

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "mvlm.data.worker", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            )
        connection = Connection(ours.detach())
        self._all.append((process, connection))
        connection.send(self._dataset)
        return process, connection


def _death(code: int) -> UserError:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return UserError(
        f"A loader process {how}: what it said stands above; with SIGKILL take fewer data.workers or more memory, "
        "with SIGBUS look for a shard that was cut while it was read."
    )
