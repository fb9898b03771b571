"""Stage 1's own reduction, flattening and clipping of gradients gives what DeepSpeed's does."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.compile.launches import model_of
from benchmarks.step.sizes import SIZES, make_batch
from mvlm.batch import MetricAccumulator
from mvlm.data.samples.captions import COARSE
from mvlm.runtime import dist
from mvlm.training.engine import Engine
from mvlm.training.optim import count_parameters
from mvlm.training.zero import share_reduction
from mvlm.training.zero.config import RunSide, resolve
from mvlm.training.zero.share_reduction import ShareReduction, clips_shares, reduces_shares
from mvlm.training.zero.shares import ParamSlice

SIZE = SIZES["tiny"]
BF16 = {"bf16": {"enabled": True}}
BY_DEEPSPEED = {"reduce_scatter": False}
"""Leaves the reduction to DeepSpeed; on one rank it changes no number."""


def train_two_steps(content: dict[str, Any]) -> tuple[list[dict[str, float]], list[Tensor], bool]:
    """The metrics of two steps of two micro-batches, all tensors after them, and whether the reduction is our own."""
    model = model_of(captured=False, size=SIZE)
    train = replace(SIZE.config.train, global_batch=2 * SIZE.pairs, micro_batch=SIZE.pairs)
    side = RunSide(("json", "toml"), "", train, SIZE.config.optim, 1, (1000, 10), count_parameters(model))
    engine = Engine(model, SIZE.config.optim, SIZE.config.objectives, resolve(content, side), ema=0.9)
    engine.prepare_state(0)
    lines = []
    for step in range(2):
        tally = MetricAccumulator()
        starts = (8 * step, 8 * step + 4)
        losses = engine.step([make_batch(SIZE, model.grid, 4, 20, start, COARSE) for start in starts], 1.0, step, tally)
        norms = {name: float(value) for name, value in tally.values.items() if name.startswith("grad_norms")}
        assert engine.grad_norm is not None
        lines.append({name: loss.item() for name, loss in losses.items()} | norms | {"norm": float(engine.grad_norm)})
    tensors = [part.elements.clone() for _, parts in engine.own_parts() for part in parts.values()]
    return lines, tensors, isinstance(engine._reduction, ShareReduction)


@pytest.mark.parametrize("precision", [BF16, pytest.param({}, marks=pytest.mark.campaign)], ids=["bf16", "fp32"])
def test_steps_equal_those_of_deepspeeds_own_reduction(
    one_rank: None, monkeypatch: pytest.MonkeyPatch, precision: dict[str, Any]
) -> None:
    """They are equal in every bit, even if a norm is computed in several pieces."""
    monkeypatch.setattr(share_reduction, "NORMED", 5000)
    lines, tensors, is_own = train_two_steps(precision | {"zero_optimization": {"stage": 1}})
    expected, theirs, is_reference_own = train_two_steps(precision | {"zero_optimization": {"stage": 1} | BY_DEEPSPEED})
    assert is_own and not is_reference_own
    assert lines == expected
    assert len(tensors) == len(theirs) > 400
    assert all(torch.equal(found, wanted) for found, wanted in zip(tensors, theirs, strict=True))
    assert max(line["norm"] for line in lines) > SIZE.config.optim.clip  # else clipping was not tested


@dataclass
class Optimizer:
    """Stands in for DeepSpeed's: flat parameter groups, and each rank's equal share of them."""

    bit16_groups: list[list[nn.Parameter]]
    ranks: int
    averaged_gradients: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = [sum(parameter.numel() for parameter in group) for group in self.bit16_groups]
        self.partition_size = [-(-count // self.ranks) for count in counts]

    def flatten(self, tensors: list[Tensor]) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors])

    def allreduce_bucket(self, bucket: list[Tensor], _: torch.dtype) -> Tensor:
        """The mean of values that are the same on every rank; the bucket itself is overwritten."""
        mean = bucket[0].clone()
        bucket[0].zero_()
        return mean

    def slices(self, rank: int) -> list[ParamSlice]:
        found = []
        for group, size in zip(self.bit16_groups, self.partition_size, strict=True):
            begins = 0
            for parameter in group:
                first, last = max(begins, rank * size), min(begins + parameter.numel(), (rank + 1) * size)
                if first < last:
                    found.append(ParamSlice(parameter, parameter, first - rank * size, last - first, first - begins))
                begins += parameter.numel()
        return found


@dataclass
class DeepSpeed:
    optimizer: Optimizer
    enable_backward_allreduce: bool = True

    def is_gradient_accumulation_boundary(self) -> bool:
        return True


@pytest.mark.parametrize("rank", range(3))
@pytest.mark.parametrize("early", [True, False])
def test_each_rank_is_left_with_its_share(monkeypatch: pytest.MonkeyPatch, rank: int, early: bool) -> None:
    """All three ranks have the same gradients, so these are also the mean."""
    monkeypatch.setattr(dist, "world", lambda: 3)
    layers = {"vision": 5, "text": 3, "cross_image": 4, "unused": 2, "heads": 7}
    model = nn.ModuleDict({name: nn.Linear(size, size) for name, size in layers.items()}).double()
    matrices, biases = ([p for p in model.parameters() if p.dim() == rows] for rows in (2, 1))
    zero = Optimizer([matrices, biases], 3)
    resolved = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 30, "overlap_comm": early}}
    resolved |= {"gradient_clipping": 1.0}
    engine = DeepSpeed(zero)
    reduction = ShareReduction(engine, model.named_parameters(), resolved, zero.slices(rank))
    assert not engine.enable_backward_allreduce
    x = torch.ones(1, 1, dtype=torch.float64)
    for name, size in layers.items():
        if name != "unused":
            place = torch.arange(1.0, size + 1, dtype=torch.float64)  # so that gradients differ within a parameter
            x = place * model[name](x.sum(-1, keepdim=True) * place)
    read = [parameter for name, parameter in model.named_parameters() if "unused" not in name]
    gradients = dict(zip(map(id, read), torch.autograd.grad(x.sum(), read, retain_graph=True), strict=True))
    x.sum().backward()
    reduction.finish()
    assert len(reduction._buckets) > 2
    assert all(parameter.grad is None for parameter in model.parameters())
    for number, (group, size) in enumerate(zip(zero.bit16_groups, zero.partition_size, strict=True)):
        whole = zero.flatten([gradients.get(id(p), torch.zeros_like(p)) for p in group])
        whole = torch.nn.functional.pad(whole, (0, 3 * size - len(whole)))
        share = zero.averaged_gradients[number]
        torch.testing.assert_close(share.flat_partition, whole[rank * size : (rank + 1) * size])
        assert torch.equal(torch.cat(share), share.flat_partition)


@pytest.mark.parametrize(
    ("more", "own", "clipped"),
    [
        ({}, True, False),
        (BF16, True, True),
        ({"bf16": {"enabled": True, "check_grad_overflow": True}}, True, False),
        ({"fp16": {"enabled": True}}, True, False),
        (BF16 | {"data_types": {"grad_accum_dtype": "fp32"}}, False, False),
        (BF16 | {"communication_data_type": "fp32"}, False, False),
        (BF16 | {"gradient_predivide_factor": 2.0}, False, False),
        (BF16 | {"gradient_predivide_factor": 1.0, "prescale_gradients": False}, True, True),
        (BF16 | {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}, False, False),
        (BF16 | {"zero_optimization": {"stage": 1, "use_multi_rank_bucket_allreduce": False}}, False, False),
        (
            BF16 | {"zero_optimization": {"stage": 1, "reduce_scatter": True, "round_robin_gradients": False}},
            True,
            True,
        ),
        (BF16 | {"zero_optimization": {"stage": 1, "reduce_scatter": False}}, False, False),
        (BF16 | {"zero_optimization": {"stage": 2}}, False, False),
    ],
)
def test_some_jsons_leave_the_reduction_to_deepspeed(more: dict[str, Any], own: bool, clipped: bool) -> None:
    train = replace(SIZE.config.train, global_batch=4, micro_batch=4)
    side = RunSide(("json", "toml"), "/nowhere", train, SIZE.config.optim, 1, (1000, 10), 1000)
    resolved = resolve({"zero_optimization": {"stage": 1}} | more, side)
    assert (reduces_shares(resolved), clips_shares(resolved)) == (own, clipped)
