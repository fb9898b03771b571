"""Sums of the bits of weights and moments: what memory has changed between two updates is seen.

Memory without error correction, and now and then memory with it, hands back other bits than were written, and nothing
else tells of it: the run trains on, a little worse (Dixit et al., Silent Data Corruptions at Scale, 2021).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mvlm.errors import UserError
from mvlm.runtime import dist
from mvlm.training.zero.state import ZeroState

Source = Callable[[], Iterable[Tensor]]

TOGETHER = 1 << 24
"""Elements that are laid end to end to be summed at once."""
COLUMNS = 1024


class Checksums:
    """What this rank's tensors sum up to after an update, to be compared with before the next; no device is waited for.

    Args:
        own: give tensors that are this rank's alone.
        copies: give those that every rank has alike.
    """

    def __init__(self, own: Sequence[Source], copies: Sequence[Source]) -> None:
        self._own, self._copies = own, copies
        self._kept: tuple[Tensor, Tensor] | None = None

    def forget(self) -> None:
        """What there is will be changed on purpose."""
        self._kept = None

    def keep(self) -> None:
        """What there is now is right."""
        self._kept = self._sums()

    def changed(self) -> Tensor:
        """1.0 where bits have changed since `keep`, or are others than another rank's copies have, else 0.0.

        A scalar on the device. All ranks must call.
        """
        if self._kept is None:
            self.keep()
        assert self._kept
        own, copies = self._sums()
        wrong = (own != self._kept[0]) | (copies != self._kept[1])
        if dist.world() > 1:
            ends = torch.stack([copies, -copies])
            wrong = wrong | (dist.all_reduce(ends, "max") != ends).any()
        return wrong.float()

    def _sums(self) -> tuple[Tensor, Tensor]:
        return _all(self._own), _all(self._copies)


def _all(sources: Sequence[Source]) -> Tensor:
    return sum_bits(tensor for source in sources for tensor in source())


def checksums_of(model: nn.Module, state: ZeroState, ds_config: dict[str, Any]) -> Checksums:
    """Of the weights that an engine's model computes with, frozen ones too, and of the state that they are made from.

    Raises:
        UserError: DeepSpeed keeps state in files, of which memory has parts at times.
    """
    zero = ds_config["zero_optimization"]
    for name in ("offload_optimizer", "offload_param"):
        if (zero.get(name) or {}).get("device") == "nvme":
            raise UserError(
                f"train.checksums sums what is in memory, but {name} has it on NVMe: turn one of the two off."
            )

    masters = {id(tensor) for tensor in state.tensors()}  # in fp32 at stage 0 the parameters themselves

    def computed_with() -> Iterator[Tensor]:
        yield from (getattr(p, "ds_tensor", p).data for p in model.parameters() if id(p) not in masters)

    by_stage: dict[int, tuple[list[Source], list[Source]]] = {
        0: ([], [state.tensors, computed_with]),
        3: ([state.tensors, computed_with], []),
    }
    return Checksums(*by_stage.get(zero["stage"], ([state.tensors], [computed_with])))


@torch.no_grad()
def sum_bits(tensors: Iterable[Tensor]) -> Tensor:
    """An int64 scalar on the run's device, modulo 2^64, that one flipped bit always changes, and more nearly always.

    Bits count as 64-bit integers, each column of `COLUMNS` times an odd number of its own, so that flips in opposite
    ways do not cancel out.
    """
    total = torch.zeros((), dtype=torch.int64, device=dist.device())
    for number, run in enumerate(_runs(tensors)):
        total += (2 * number + 1) * _sum(run).to(total.device)
    return total


def _sum(run: Tensor) -> Tensor:
    row = 8 * COLUMNS // run.element_size()
    whole = len(run) // row * row
    rest = torch.nn.functional.pad(run[whole:], (0, row - len(run) + whole)).view(torch.int64)
    sums = run[:whole].view(torch.int64).view(-1, COLUMNS).sum(0) + rest
    sums ^= sums >> 29  # what two sums differ by in their highest bit alone would cancel out
    return (sums * (2 * torch.arange(COLUMNS, device=sums.device) + 1)).sum()


def _runs(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Flat ones: long tensors in pieces as they lie, short ones end to end, so that a hundreds take few calls."""
    waiting: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    lengths: defaultdict[tuple[torch.device, torch.dtype], int] = defaultdict(int)
    for tensor in tensors:
        flat = tensor.detach().flatten()
        kind = flat.device, flat.dtype
        if len(flat) >= TOGETHER and flat.data_ptr() % 8 == 0:
            yield from flat.split(TOGETHER)
            continue
        for piece in flat.split(TOGETHER):
            waiting[kind].append(piece)
            lengths[kind] += len(piece)
            if lengths[kind] >= TOGETHER:
                yield torch.cat(waiting.pop(kind))
                lengths[kind] = 0
    yield from map(torch.cat, waiting.values())
