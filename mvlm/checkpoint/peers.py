"""Copies of the newest checkpoint's files in shared memory: each node keeps those that the node before it has written.

Nodes with run folders of their own form a ring. While training continues, each rank sends its files to a rank of the
next node, in chunks, from host memory. What a node receives of a checkpoint replaces its copies of the one before. If a
node is lost, its successor has what it wrote: mvlm/checkpoint/assemble.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import BinaryIO

import torch
from torch import Tensor

from mvlm.checkpoint.folder_group import FolderGroup
from mvlm.checkpoint.layout import Entry
from mvlm.errors import first_line
from mvlm.runtime import dist
from mvlm.runtime.log import rank_log

SHARED = Path("/dev/shm")
ROOM = 0.5
"""Share of the free shared memory that copies may take: NCCL and others need some too."""
CHUNK_BYTES = 1 << 23
TAG = 31
"""Of these messages between ranks; `mvlm.runtime.background` has another."""


def memory_of(run: Path) -> Path:
    """Where a node keeps copies for a run: the same for every attempt at it."""
    return SHARED / f"mvlm-{hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:12]}"


def partners(nodes: Sequence[tuple[int, ...]], rank: int) -> tuple[int, list[int]]:
    """The rank of the next node that a rank sends to, and those of the node before that send to it.

    Args:
        nodes: the ranks of each.
    """
    own = next(number for number, ranks in enumerate(nodes) if rank in ranks)

    def receiver(node: int, place: int) -> int:
        following = nodes[(node + 1) % len(nodes)]
        return following[place % len(following)]

    senders = [sender for place, sender in enumerate(nodes[own - 1]) if receiver(own - 1, place) == rank]
    return receiver(own, nodes[own].index(rank)), senders


class PeerCopies:
    """This rank's part in the ring; all ranks must construct it.

    Args:
        group: the ranks of this node, of several.
    """

    def __init__(self, memory: Path, group: FolderGroup) -> None:
        self._memory, self._group = memory, group
        nodes = sorted(set(dist.gather_objects(group.ranks)))
        assert len(nodes) > 1
        self._receiver, self._senders = partners(nodes, dist.rank())
        self._threads: list[Thread] = []

    @property
    def busy(self) -> bool:
        """Whether this rank still sends or receives."""
        return any(thread.is_alive() for thread in self._threads)

    def offer(self, checkpoint: Path, written: Sequence[Sequence[Entry]]) -> None:
        """Begin to send and receive the files of a published checkpoint; all ranks must call, none of them busy.

        Args:
            written: the files that each rank has written.
        """
        files = [(entry.bytes, open_to_read(checkpoint / entry.file)) for entry in written[dist.rank()]]
        coming = [(rank, written[rank]) for rank in self._senders]
        self._threads = [
            _started(lambda: _send(files, self._receiver)),
            _started(lambda: self._receive(checkpoint.name, coming)),
        ]

    def drain(self) -> None:
        """Wait for what is on its way."""
        for thread in self._threads:
            thread.join()

    def remove(self) -> None:
        """Give the memory back; all ranks must call."""
        self.drain()
        dist.barrier()
        if self._group.leads:
            shutil.rmtree(self._memory, ignore_errors=True)

    def _receive(self, name: str, coming: Sequence[tuple[int, Sequence[Entry]]]) -> None:
        folder = self._make_room(name, sum(entry.bytes for _, entries in coming for entry in entries))
        for rank, entries in coming:
            for entry in entries:
                receive_file(folder / entry.file if folder else None, entry.bytes, rank)

    def _make_room(self, name: str, needed: int) -> Path | None:
        """Delete the files of other checkpoints; returns the folder for this one's, None if they cannot be kept."""
        try:
            require_own(self._memory)
            for other in self._memory.iterdir():
                if other.name != name:
                    shutil.rmtree(other, ignore_errors=True)
            if needed * len(self._group.ranks) > ROOM * shutil.disk_usage(self._memory).free:
                raise OSError(f"{needed / 1e9:.3g} GB of each rank would take more than half of what is free there")
            (self._memory / name).mkdir(exist_ok=True)
        except OSError as error:
            rank_log.warning(f"{self._memory} keeps no copy of {name}'s files ({error}), and training continues.")
            return None
        return self._memory / name


def require_own(memory: Path) -> None:
    """Make a folder that no other user can read; raises OSError if what is there is not that, or is a link."""
    memory.mkdir(mode=0o700, exist_ok=True)
    found = memory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError("it is not this user's alone")


def send_file(file: BinaryIO | None, length: int, rank: int) -> None:
    """Send `length` bytes; what cannot be read is sent as zeros, which the file's hash will reveal."""
    while length:
        chunk = torch.zeros(min(CHUNK_BYTES, length), dtype=torch.uint8)
        with contextlib.suppress(OSError):
            _read_into(file, chunk)
        dist.send(chunk, rank, TAG)
        length -= len(chunk)


def receive_file(path: Path | None, length: int, rank: int) -> None:
    """Receive what `send_file` sends; a file that cannot be written is removed. With path None it is discarded."""
    file = None
    try:
        with contextlib.suppress(OSError):
            file = open(path, "wb") if path else None  # noqa: SIM115 - may fail, and is closed below
        while length:
            chunk = torch.empty(min(CHUNK_BYTES, length), dtype=torch.uint8)
            dist.receive(chunk, rank, TAG)
            length -= len(chunk)
            if file and not _written(file, chunk):
                file.close()
                file = None
                assert path
                path.unlink(missing_ok=True)
    finally:
        if file:
            file.close()


def _written(file: BinaryIO, chunk: Tensor) -> bool:
    try:
        file.write(chunk.numpy().data)
        file.flush()
    except OSError as error:
        rank_log.warning(f"{file.name} cannot be written ({error}), and training continues without that copy.")
        return False
    return True


def _read_into(file: BinaryIO | None, chunk: Tensor) -> None:
    left = chunk.numpy().data
    while file and len(left) and (count := file.readinto(left)):  # type: ignore[attr-defined]
        left = left[count:]


def open_to_read(path: Path) -> BinaryIO | None:
    """A file open for reading, even if it is deleted meanwhile; None if it cannot be opened."""
    try:
        return open(path, "rb", buffering=0)  # type: ignore[return-value]
    except OSError:
        return None


def _send(files: Sequence[tuple[int, BinaryIO | None]], receiver: int) -> None:
    for length, file in files:
        with file or contextlib.nullcontext():
            send_file(file, length, receiver)


def _started(action: Callable[[], None]) -> Thread:
    def run() -> None:
        try:
            action()
        except RuntimeError as error:  # a rank has died, as the next step will find
            rank_log.warning(f"Another node's copy of the newest checkpoint is not whole ({first_line(error)}).")

    thread = Thread(target=run, name="peers", daemon=True)
    thread.start()
    return thread
