"""Loader processes, one for each thread that asks: separate interpreters, for work that holds the GIL too long."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from mvlm.data.loading.buffers import Buffer
from mvlm.data.samples.dataset import Draw, ShardDataset
from mvlm.errors import DataLost, UserError


@dataclass(frozen=True)
class _Started:
    process: subprocess.Popen[bytes]
    connection: Connection
    is_up: threading.Event  # or will never be
    greeter: threading.Thread  # sends it the data set, and waits for its answer

    def end(self) -> None:
        self.process.kill()  # it has nothing to save
        self.process.wait()
        self.greeter.join()
        self.connection.close()


class Processes:
    """Prepares samples in the calling thread's own process.

    Until that process is up the thread prepares them itself, so that the first batch does not wait.

    Args:
        dataset: must be picklable, and importable without torch.

    Attributes:
        may_start: set once starting them, which takes half a second of a core each, cannot delay the first batch.
    """

    def __init__(self, dataset: ShardDataset[Any]):
        self._dataset = dataset
        self._fetches = any(corpus.location.cached for corpus in dataset.mixture.corpora)
        self._own = threading.local()
        self._all: list[_Started] = []
        self.may_start = False

    def prepare(self, draws: Sequence[Draw], buffer: Buffer, first: int) -> list[Any]:
        """Like `ShardDataset.samples`, into a shared buffer from its sample `first` on.

        Raises:
            UserError: as the data set does, or because the process has ended.
            DataLost: it was killed.
        """
        own: _Started | None = getattr(self._own, "started", None)
        if own is None and self.may_start:
            own = self._own.started = self._start()
        if own is None or not own.is_up.is_set():
            return self._dataset.samples(draws, buffer.images_VBCHW[:, first : first + len(draws)])
        if self._fetches:  # here, since clients of object stores are too large for a loader process
            for _, number, _ in draws:
                self._dataset.fetch(number)
        try:
            own.connection.send((buffer.file, buffer.images_VBCHW.shape, first, draws))
            answer = own.connection.recv()
        except (EOFError, ConnectionError):
            raise _death(own.process.wait()) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End all processes; no thread may be in `prepare`."""
        while self._all:
            self._all.pop().end()

    def _start(self) -> _Started:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "mvlm.data.loading.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            )
        connection, is_up = Connection(ours.detach()), threading.Event()
        greeter = threading.Thread(target=self._greet, args=(connection, is_up), daemon=True)
        greeter.start()
        started = _Started(process, connection, is_up, greeter)
        self._all.append(started)
        return started

    def _greet(self, connection: Connection, is_up: threading.Event) -> None:
        try:
            connection.send(self._dataset)
            connection.recv()
        except (EOFError, ConnectionError):
            pass  # it has died, which the next request for samples will report
        finally:
            is_up.set()


def _death(code: int) -> UserError:
    if code >= 0:
        return UserError(f"A loader process ended with code {code}: what it printed is above.")
    return DataLost(
        f"A loader process was killed by {signal.Signals(-code).name}: with SIGKILL take fewer data.workers or more "
        "memory, with SIGBUS look for a shard that was cut while it was read."
    )
