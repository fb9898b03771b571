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
INTEGERS = {4: torch.int32, 2: torch.int16, 1: torch.uint8}
"""By bytes of an element."""


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
        own, copies = (
            sum_bits(tensor for source in sources for tensor in source()) for sources in (self._own, self._copies)
        )
        return own, copies


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
    """An int64 scalar on the run's device, modulo 2^64, that one flipped bit always changes.

    Elements count as integers, and each run of them times an odd number of its own, so that two bits which flip in
    opposite ways in different places hardly cancel out.
    """
    total = torch.zeros((), dtype=torch.int64, device=dist.device())
    for number, run in enumerate(_runs(tensors)):
        total += (2 * number + 1) * run.sum(dtype=torch.int64).to(total.device)
    return total


def _runs(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Of integers: long tensors as they are, short ones end to end, so that a model's hundreds take few calls."""
    waiting: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        integers = tensor.detach().view(INTEGERS[tensor.element_size()])
        if integers.numel() >= TOGETHER:
            yield integers
            continue
        alike = waiting[integers.device, integers.dtype]
        alike.append(integers.flatten())
        if sum(map(len, alike)) >= TOGETHER:
            yield torch.cat(alike)
            alike.clear()
    yield from (torch.cat(alike) for alike in waiting.values() if alike)
