"""Sums of the bits of weights and moments, to detect what memory has changed between two updates.

Memory without error correction, and now and then memory with it, returns other bits than were written, and nothing
else reveals it: the run trains on, a little worse (Dixit et al., Silent Data Corruptions at Scale, 2021).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mvlm.runtime import dist, replicas
from mvlm.training.zero.state import ZeroState

Source = Callable[[], Iterable[Tensor]]

TOGETHER = {"cpu": 1 << 15, "cuda": 1 << 24}
"""Elements that are concatenated to be summed at once: what a CPU's cache holds, or what takes few calls."""
ROW = 1024
GOLDEN, MIXED = 0x9E3779B97F4A7C15 - 2**64, ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


class Checksums:
    """The sums of this rank's tensors after an update, to be compared before the next; no device is waited for.

    Args:
        own: give tensors that only this rank has.
        copies: give those of which every replica has the same.
    """

    def __init__(self, own: Sequence[Source], copies: Sequence[Source]) -> None:
        self._own, self._copies = own, copies
        self._kept: tuple[Tensor, Tensor] | None = None

    def forget(self) -> None:
        """Drop the sums: the tensors are about to be changed on purpose."""
        self._kept = None

    def keep(self) -> None:
        """Record that the tensors are right as they are now."""
        self._kept = self._sums()

    def changed(self) -> Tensor:
        """1.0 if bits have changed since `keep`, or differ from another rank's copies, else 0.0.

        A scalar on the device. All ranks must call.
        """
        if self._kept is None:
            self.keep()
        assert self._kept
        own, copies = self._sums()
        wrong = (own != self._kept[0]) | (copies != self._kept[1])
        if replicas.world() > 1:
            ends = torch.stack([copies, -copies])
            wrong = wrong | (replicas.all_reduce(ends, "max") != ends).any()
        return wrong.float()

    def _sums(self) -> tuple[Tensor, Tensor]:
        return _all(self._own), _all(self._copies)


def _all(sources: Sequence[Source]) -> Tensor:
    return sum_bits(tensor for source in sources for tensor in source())


def checksums_of(model: nn.Module, state: ZeroState, ds_config: dict[str, Any]) -> Checksums:
    """For the weights that an engine's model computes with, frozen ones too, and the state that they are made from."""
    masters = {id(tensor) for tensor in state.tensors()}  # in fp32 at stage 0 the parameters themselves

    def computed_with() -> Iterator[Tensor]:
        yield from (getattr(p, "ds_tensor", p).data for p in model.parameters() if id(p) not in masters)

    by_stage: dict[int, tuple[list[Source], list[Source]]] = {
        0: ([], [state.tensors, computed_with]),
        3: ([state.tensors, computed_with], []),
    }
    return Checksums(*by_stage.get(ds_config["zero_optimization"]["stage"], ([state.tensors], [computed_with])))


@torch.no_grad()
def sum_bits(tensors: Iterable[Tensor]) -> Tensor:
    """An int64 scalar on the run's device that one flipped bit always changes, and more of them nearly always.

    It is the sum of the rows' hashes, each row being the sum of `ROW` integers of 64 bits, modulo 2^64: opposite flips
    cancel out only within a row.
    """
    device = dist.device()
    rows_R = torch.cat([torch.zeros(1, dtype=torch.int64, device=device), *(row.to(device) for row in _rows(tensors))])
    return _hash(rows_R + GOLDEN * torch.arange(len(rows_R), device=device)).sum()


def _hash(integers: Tensor) -> Tensor:
    """Of each integer, bijective: splitmix64 (Steele et al., Fast Splittable Pseudorandom Number Generators, 2014)."""
    for shift, odd in MIXED:
        integers = (integers ^ (integers >> shift)) * odd
    return integers ^ (integers >> 31)


def _rows(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Sums of rows: of long tensors in place, of the rest concatenated, so that hundreds take few calls."""
    waiting: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    lengths: defaultdict[tuple[torch.device, torch.dtype], int] = defaultdict(int)
    for tensor in tensors:
        flat = tensor.detach().flatten()
        kind, together = (flat.device, flat.dtype), TOGETHER[flat.device.type]
        if len(flat) >= together and flat.data_ptr() % 8 == 0:
            whole = len(flat) - len(flat) % (8 * ROW // flat.element_size())
            yield _row_sums(flat[:whole])
            flat = flat[whole:]
        for piece in flat.split(together):
            waiting[kind].append(piece)
            lengths[kind] += len(piece)
            if lengths[kind] >= together:
                yield _row_sums(torch.cat(waiting.pop(kind)))
                lengths[kind] = 0
    yield from (_row_sums(torch.cat(pieces)) for pieces in waiting.values())


def _row_sums(flat: Tensor) -> Tensor:
    short = -len(flat) % (8 * ROW // flat.element_size())
    padded = torch.nn.functional.pad(flat, (0, short)) if short else flat
    return padded.view(torch.int64).view(-1, ROW).sum(1)
