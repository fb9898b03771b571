"""The order in which stage 0 reduces gradients; tests/training/test_parity.py compares the results on real ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from mvlm.runtime import dist
from mvlm.training.zero.reduction import Reduction


@dataclass
class Recorder:
    """Stands in for DeepSpeed, as if another rank had the same gradients: sums are twice these.

    Attributes:
        seen: for each reduction, the sizes of its gradients and how many gradients existed by then.
    """

    model: nn.Module
    boundary: bool = True
    enable_backward_allreduce: bool = True
    zero_grad: Callable[[], None] | None = None
    seen: list[tuple[list[int], int]] = field(default_factory=list)

    def is_gradient_accumulation_boundary(self) -> bool:
        return self.boundary

    def buffered_allreduce_fallback(self, grads: list[Tensor]) -> None:
        existing = sum(parameter.grad is not None for parameter in self.model.parameters())
        self.seen.append(([gradient.numel() for gradient in grads], existing))
        for gradient in grads:
            gradient.mul_(2)


def test_buckets_are_reduced_in_a_fixed_order_during_the_last_backward_pass_of_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dist, "world", lambda: 2)
    layers = {"vision": 2, "text": 3, "image_projection": 4, "cross_image": 5, "unused": 6, "heads": 7}
    model = nn.ModuleDict({name: nn.Linear(size, size, bias=False) for name, size in layers.items()})
    engine = Recorder(model)
    reduction = Reduction(engine, model.named_parameters(), size=30)
    assert not engine.enable_backward_allreduce

    def backward() -> None:
        x = torch.ones(1, 1)
        for name, size in layers.items():
            if name != "unused":
                x = model[name](x.sum(-1, keepdim=True).expand(1, size))
        x.sum().backward()
        reduction.finish()

    engine.boundary = False
    backward()
    assert not engine.seen
    alone = {name: layer.weight.grad.clone() for name, layer in model.items() if name != "unused"}
    engine.boundary = True
    backward()
    # Gradients that the first pass has left do not count: a bucket waits for those of the last pass.
    assert [sizes for sizes, _ in engine.seen] == [[49], [36], [25, 16], [9, 4]]
    for name, layer in model.items():
        torch.testing.assert_close(layer.weight.grad, 4 * alone[name] if name in alone else torch.zeros(6, 6))

    model.zero_grad(set_to_none=True)
    engine.seen.clear()
    backward()
    assert [existing for _, existing in engine.seen] == [1, 6, 6, 6]  # from the bucket of "unused" on, at the end
    model.zero_grad(set_to_none=True)
    engine.seen.clear()
    layers.pop("heads"), layers.pop("unused")
    backward()
    assert [sizes for sizes, _ in engine.seen] == [[49], [36], [25, 16], [9, 4]]
    assert not model["heads"].weight.grad.any()


def test_a_single_rank_reduces_nothing_and_missing_gradients_become_zeros() -> None:
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("vision", "unused")})
    engine = Recorder(model)
    reduction = Reduction(engine, model.named_parameters(), size=3)
    model["vision"](torch.ones(1, 2)).sum().backward()
    reduction.finish()
    assert not engine.seen and not engine.enable_backward_allreduce
    assert torch.equal(model["vision"].weight.grad, torch.ones(2, 2))
    assert torch.equal(model["unused"].weight.grad, torch.zeros(2, 2))
    engine.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
