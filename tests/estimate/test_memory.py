"""Memory counted with fake tensors against the same passes with real ones."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch

from benchmarks.step.sizes import SIZES, build, overrides
from mvlm.batch import apply
from mvlm.estimate.count import FakeModel
from mvlm.estimate.memory import peak
from mvlm.estimate.synthetic import synthetic_batch
from mvlm.kernels.layers import use_kernels
from mvlm.runtime.live_memory import LiveMemory
from mvlm.training.parallelize import freeze, recompute_blocks
from mvlm.training.zero.memory import States

NOTHING = States(weights=0, gathered=0, gradients=0, held=0, share=0, averaged=0, optimizer=0, buckets=0, update=0)
TINY = SIZES["tiny"]
SIZE = dataclasses.replace(TINY, overrides=(*TINY.overrides, *overrides(64, 1, 1, vision=", patch_size=8")))
"""One block per encoder, since the time grows with the number of operations."""


@pytest.mark.parametrize(
    ("element", "recompute", "frozen"),
    [
        pytest.param(4, 0.0, (), marks=pytest.mark.campaign),
        (2, 0.0, ()),
        (4, 0.5, ()),
        (2, 0.0, ("vision", "text.model.embeddings")),
        pytest.param(2, 1.0, (), marks=pytest.mark.campaign),
    ],
)
def test_a_fake_step_needs_the_memory_of_the_real_one(element: int, recompute: float, frozen: tuple[str, ...]) -> None:
    """In forward and backward pass, with each gradient freed as soon as it is complete."""
    model, config = build(SIZE), SIZE.config
    freeze(model, frozen)
    planned = peak(FakeModel(model, config.data, "cpu").moments_of(24, element, recompute), NOTHING, 0, 24)
    use_kernels(model)
    recompute_blocks(model, recompute)
    model.to(torch.bfloat16 if element == 2 else torch.float32)
    for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    batch = synthetic_batch(model, config.data, [config.data.text_length] * 24)
    gc.collect()
    with LiveMemory() as memory:
        batch = apply(batch, lambda tensor: torch.zeros_like(tensor, device="cpu"))
        sum(model(batch).values()).backward()
    assert planned.total == pytest.approx(memory.peak, rel=0.02)
    assert planned.activations + planned.scratch == planned.total


def test_two_counts_give_the_memory_of_any_number_of_pairs() -> None:
    model = FakeModel(build(SIZE), SIZE.config.data)
    found, exact = (peak(moments, NOTHING, 0, 20) for moments in (model.moments(2, 0.5), model.moments_of(20, 2, 0.5)))
    assert found.total == pytest.approx(exact.total, rel=5e-3)  # similarities grow with the square
    assert found.moment == exact.moment
