"""Assembles stage 1's gradients in a few calls, where DeepSpeed itself copies each twice and takes its norm.

The result is the same in every bit, except that sums over more than two ranks may be rounded in another order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from mvlm.runtime import dist
from mvlm.training.zero.buckets import Buckets
from mvlm.training.zero.reduction import Reduction
from mvlm.training.zero.shares import ParamSlice

NORMED = 2**24
"""Elements whose norm is taken at once, of which there may be a copy in fp64: 134 MB."""

PLAIN: dict[str, Any] = {
    "communication_data_type": None,
    "data_types": {},
    "prescale_gradients": False,
    "gradient_predivide_factor": 1,
    "tensor_parallel": {},
    "torch_autocast": {},
    "zero_optimization.parameter_alignment": False,
    "zero_optimization.reduce_scatter": True,
    "zero_optimization.round_robin_gradients": False,
    "zero_optimization.use_multi_rank_bucket_allreduce": True,
}
"""Keys of a DeepSpeed JSON that say how gradients are reduced or laid out, with the values that ask for what is done by
this module."""


def reduces_shares(resolved: dict[str, Any]) -> bool:
    """Whether gradients are reduced here: under stage 1 on the device, if the JSON asks for no other way."""
    zero = resolved["zero_optimization"]
    if zero["stage"] != 1 or (zero.get("offload_optimizer") or {}).get("device", "none") != "none":
        return False
    given = resolved | {f"zero_optimization.{key}": value for key, value in zero.items()}
    return all(given.get(key) in (None, plain) for key, plain in PLAIN.items())


def clips_shares(resolved: dict[str, Any]) -> bool:
    """Whether they are clipped here too: in bf16, where DeepSpeed makes every update, whatever the norm is."""
    bf16 = resolved.get("bf16") or {}
    return reduces_shares(resolved) and bool(bf16.get("enabled")) and not bf16.get("check_grad_overflow", True)


def without_own(resolved: dict[str, Any]) -> dict[str, Any]:
    """The configuration with which DeepSpeed leaves to this module what it does."""
    if not reduces_shares(resolved):
        return {key: value for key, value in resolved.items() if key != "tensor_parallel"}  # layers are split by now
    own: dict[str, Any] = {"overlap_comm": False, "contiguous_gradients": False}
    if not clips_shares(resolved):
        return resolved | {"zero_optimization": resolved["zero_optimization"] | own}
    own["compute_grad_norm"] = False
    return resolved | {"zero_optimization": resolved["zero_optimization"] | own, "gradient_clipping": 0.0}


class OwnRange(NamedTuple):
    """Elements of a flattened bucket that are contiguous in this rank's share of a parameter group too."""

    group: int
    begins: int
    start: int
    length: int


class Share(list[Tensor]):
    """This rank's gradients of a parameter group, as DeepSpeed asks for them: in pieces, and flattened.

    Args:
        parameters: how many of the group have a piece here; DeepSpeed takes no norm of more pieces than that.
    """

    def __init__(self, flat: Tensor, parameters: int) -> None:
        pieces = max(1, min(parameters, -(-flat.numel() // NORMED)))
        super().__init__(flat.split(-(-flat.numel() // pieces)))
        self.flat_partition = flat


def reduction_of(
    engine: Any, named: Iterable[tuple[str, Parameter]], resolved: dict[str, Any], slices: Iterable[ParamSlice]
) -> Buckets | None:
    """What reduces the gradients of DeepSpeed's engine; None if that does so itself."""
    zero = resolved["zero_optimization"]
    if zero["stage"] == 0:
        return Reduction(engine, named, int(zero["reduce_bucket_size"]))
    return ShareReduction(engine, named, resolved, slices) if reduces_shares(resolved) else None


class ShareReduction(Buckets):
    """Flattens a bucket of gradients, sums it over ranks, and keeps what belongs to this rank's share.

    For a single rank a bucket is a parameter group, which when flattened is its share.

    Args:
        engine: DeepSpeed's, at stage 1, with `without_own`'s configuration.
        resolved: the configuration before that.
        slices: where this rank's pieces of the parameters lie in the shares.

    Attributes:
        grad_norm: of the whole gradient before it was clipped, infinite if it is not finite; None if DeepSpeed takes
            it.
    """

    def __init__(
        self,
        engine: Any,
        named: Iterable[tuple[str, Parameter]],
        resolved: dict[str, Any],
        slices: Iterable[ParamSlice],
    ) -> None:
        zero = resolved["zero_optimization"]
        super().__init__(engine, named, int(zero["reduce_bucket_size"]), bool(zero.get("overlap_comm")))
        self._clips, self._limit = clips_shares(resolved), float(resolved["gradient_clipping"])
        self._zero = engine.optimizer
        # It would copy every parameter to where it is already.
        self._zero._update_model_bit16_weights = lambda group: None
        groups = self._zero.bit16_groups
        places = {id(p): (number, place) for number, group in enumerate(groups) for place, p in enumerate(group)}
        if self._is_alone:
            self._buckets = [list(group) for group in groups]
        for bucket in self._buckets:
            bucket.sort(key=lambda parameter: places[id(parameter)])
        self._sizes = [int(size) for size in self._zero.partition_size]
        own = {id(piece.parameter): piece for piece in slices}
        self._parameters = [sum(id(parameter) in own for parameter in group) for group in groups]
        self._segments = [_segments(bucket, own, places) for bucket in self._buckets]
        self._shares: list[Tensor] = []

    def finish(self) -> None:
        """As `Buckets` does; then hand the result of a step's last pass over to DeepSpeed."""
        super().finish()
        if self._shares:
            shares, self._shares = self._shares, []
            if self._clips:
                shares = self._clipped(shares)
            counted = zip(shares, self._parameters, strict=True)
            self._zero.averaged_gradients |= {number: Share(*one) for number, one in enumerate(counted)}

    def _reduce(self, number: int, bucket: list[Parameter]) -> None:
        gradients: list[Any] = [parameter.grad for parameter in bucket]
        for parameter in bucket:
            parameter.grad = None
        if self._is_alone:
            rest = self._sizes[number] - sum(gradient.numel() for gradient in gradients)
            padding = [gradients[0].new_zeros(rest)] if rest else []
            self._shares.append(self._zero.flatten(gradients + padding))
            return
        flat = self._zero.flatten(gradients)
        del gradients
        self._shares = self._shares or [flat.new_zeros(size) for size in self._sizes]
        with self._apart():
            mean = self._zero.allreduce_bucket([flat], flat.dtype)
            if segments := self._segments[number]:
                into = [self._shares[one.group].narrow(0, one.begins, one.length) for one in segments]
                torch._foreach_copy_(into, [mean.narrow(0, one.start, one.length) for one in segments])
        if self._stream:
            flat.record_stream(self._stream)

    @torch.no_grad()
    def _clipped(self, shares: list[Tensor]) -> list[Tensor]:
        """The shares in fp32, as the optimiser takes them, and clipped by the norm, which nothing waits for.

        A norm is rounded to fp32 group by group, as DeepSpeed rounds it.
        """
        pieces = [share.split(NORMED) for share in shares]
        norms_P = torch._foreach_norm([piece for of_group in pieces for piece in of_group], 2, torch.float64)
        norms_G = torch._foreach_norm(torch.stack(norms_P).split(list(map(len, pieces))))
        squares_G = torch.stack(norms_G).square().float()
        if not self._is_alone:
            squares_G = torch.stack([dist.all_reduce(square) for square in squares_G])
        norm = torch.linalg.vector_norm(squares_G.sqrt())
        self.grad_norm = norm.nan_to_num(nan=float("inf"), posinf=float("inf"))
        shares = [share.float() for share in shares]
        if self._limit:
            torch._foreach_mul_(shares, 1 / ((self.grad_norm + 1e-6) / self._limit).clamp(min=1))
        return shares


def _segments(
    bucket: list[Parameter], own: dict[int, ParamSlice], places: dict[int, tuple[int, int]]
) -> list[OwnRange]:
    """What of a flattened bucket belongs to this rank."""
    segments: list[OwnRange] = []
    first = 0
    for parameter in bucket:
        if piece := own.get(id(parameter)):
            segment = OwnRange(places[id(parameter)][0], piece.start, first + piece.offset, piece.length)
            last = segments[-1] if segments else None
            if last and (last.group, last.begins + last.length, last.start + last.length) == segment[:3]:
                segments[-1] = last._replace(length=last.length + segment.length)
            else:
                segments.append(segment)
        first += parameter.numel()
    return segments
