"""Numbers summed over all ranks while they go on with other work."""

from __future__ import annotations

import threading

import torch
import torch.distributed as torch_dist
from torch import Tensor

from mvlm.runtime import dist

TAG = 29
"""The tag of its messages among ranks; collectives have numbers of their own."""


class BackgroundSum:
    """The sum over ranks of a small CPU tensor, which travels over the host from the moment this is made.

    Ranks pair off, each round with a partner twice as far away: log2(N) messages one after the other, two more if N is
    no power of two, whereas gloo's all-reduce is a ring of 2 (N - 1). Every rank adds the same pairs of numbers, so
    all have the same bits. Only one sum at a time may be under way.
    """

    def __init__(self, own: Tensor) -> None:
        self._total = own
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        if dist.world() > 1:
            self._thread = threading.Thread(target=self._run, name="mvlm-agreement", daemon=True)
            self._thread.start()

    def wait(self) -> Tensor:
        """The sum, the same on every rank.

        Raises:
            RuntimeError: as from a collective, if a rank has died or fallen silent.
        """
        if self._thread:
            self._thread.join()
        if self._error:
            raise self._error
        return self._total

    def _run(self) -> None:
        try:
            self._total = _sum(self._total)
        except Exception as error:  # raised to whoever waits
            self._error = error


def rounds(world: int) -> int:
    """Messages that such a sum takes, one after the other."""
    pairs = world.bit_length() - 1
    return pairs + (2 if world > 1 << pairs else 0)


def _sum(own: Tensor) -> Tensor:
    rank, world = dist.rank(), dist.world()
    paired = 1 << (world.bit_length() - 1)  # ranks beyond hand in their numbers, and are told the sum
    if rank >= paired:
        torch_dist.send(own, rank - paired, tag=TAG)
        return _received(own, rank - paired)
    if rank + paired < world:
        own = own + _received(own, rank + paired)
    distance = 1
    while distance < paired:
        sent = torch_dist.isend(own, rank ^ distance, tag=TAG)
        other = _received(own, rank ^ distance)
        if sent is not None:
            sent.wait()
        own, distance = own + other, 2 * distance
    if rank + paired < world:
        torch_dist.send(own, rank + paired, tag=TAG)
    return own


def _received(like: Tensor, rank: int) -> Tensor:
    received = torch.empty_like(like)
    torch_dist.recv(received, rank, tag=TAG)
    return received
