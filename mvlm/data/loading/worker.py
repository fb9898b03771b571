"""A loader process: prepares samples and writes their images into memory shared with the training process.

Started as `python -m mvlm.data.loading.worker DESCRIPTOR`, which is a socket. Over it the data set arrives, answered by
None once it is there, and then, repeatedly, the descriptor and shape of a buffer, where to begin in it, and what to
prepare. The process never loads torch, and the kernel kills it when the thread that started it ends, however that ends.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from mvlm.data.samples.dataset import ShardDataset
from mvlm.data.shards.mapped import mapped
from mvlm.errors import UserError
from mvlm.runtime.launch import end_with_parent

FOR_THE_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Sent to a whole job or terminal; the training process decides what to do about them."""


def main(connection: Connection) -> None:
    ForkingPickler.register(np.ndarray, _reduced)
    for number in FOR_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)  # which a stopped process obeys too
    buffers: dict[int, np.ndarray] = {}
    try:
        dataset: ShardDataset[Any] = connection.recv()
    except EOFError:  # the parent has ended before the kernel was asked
        return
    connection.send(None)  # ready
    while True:
        try:
            file, shape, first, draws = connection.recv()
        except EOFError:
            return
        try:
            if file not in buffers:
                buffers[file] = _mapped_from_parent(file, shape)
            answer: Any = dataset.samples(draws, buffers[file][:, first : first + len(draws)])
        except UserError as error:
            answer = error
        except Exception:
            answer = RuntimeError(f"in a loader process:\n{traceback.format_exc()}")
        connection.send(answer)


def _reduced(array: np.ndarray) -> Any:
    """How an array is pickled: as bytes, which takes a third of the time that numpy's own way does.

    Images [V, C, H, W] are left out: they are already in the training process's memory.
    """
    if array.ndim == 4:
        return np.empty, ((0, 3, 0, 0), array.dtype.char)
    if array.ndim == 1:
        return np.frombuffer, (array.tobytes(), array.dtype.char)
    return array.__reduce__()


def _mapped_from_parent(file: int, shape: tuple[int, ...]) -> np.ndarray:
    own = os.open(f"/proc/{os.getppid()}/fd/{file}", os.O_RDWR)
    try:
        return mapped(own, shape)
    finally:
        os.close(own)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
