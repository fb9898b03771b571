"""Every library's fused AdamW makes the same updates as torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mvlm.config.schema import Optim
from mvlm.errors import UserError
from mvlm.kernels import probes
from mvlm.training.zero.adamw import build_adamw, by_apex, by_deepspeed, by_torch, optimizer
from tests.training.conftest import is_compiled

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_groups(dtype: torch.dtype) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [[(7, 5), (33,)], [(4, 3, 2), (1,)]]
    return [
        {
            "params": [torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_() for shape in group],
            "lr": lr,
            "weight_decay": decay,
        }
        for group, lr, decay in zip(shapes, (1e-2, 3e-3), (0.05, 0.0), strict=True)
    ]


def train(groups: list[dict[str, Any]], adamw: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The weights after 20 updates at a changing rate."""
    generator = torch.Generator().manual_seed(1)
    parameters = [parameter for group in groups for parameter in group["params"]]
    for step in range(20):
        for group in adamw.param_groups:
            group["lr"] *= 0.9 if step % 3 else 1.1
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(DEVICE, parameter.dtype)
        adamw.step()
    return [parameter.detach().double() for parameter in parameters]


@pytest.mark.parametrize("build", [by_torch, by_deepspeed, by_apex])
def test_twenty_updates_are_those_of_torch_in_float64(build: Any) -> None:
    if build is by_apex and (reason := probes.apex("amp_C")):
        pytest.skip(reason)
    if build is by_deepspeed and not is_compiled("fused_adam"):
        pytest.skip("DeepSpeed's fused AdamW, which takes a minute to compile, has not been compiled here")
    settings = {"lr": 1e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    exact = make_groups(torch.float64)
    wanted = train(exact, torch.optim.AdamW(exact, **settings))
    groups = make_groups(torch.float32)
    for found, expected in zip(train(groups, build(groups, settings, DEVICE, 0)), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_an_optimizer_that_cannot_run_here_is_refused() -> None:
    if probes.apex("amp_C") is None:
        pytest.skip("apex is built here")
    with pytest.raises(UserError, match=r"kernels\.optimizer = 'apex' cannot run here"):
        optimizer.choose("apex")
    optimizer.choose("auto")
    build_adamw(make_groups(torch.float32), Optim(), DEVICE, 0)
    assert optimizer.choice == "auto"


def test_apex_is_chosen_only_by_name_and_never_at_stage_3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it is built: it counts updates for a whole group, which stage 3 updates in pieces."""
    monkeypatch.setattr(optimizer, "_probed", dict.fromkeys(("apex", "deepspeed", "torch")))
    cuda = torch.device("cuda")
    assert [optimizer.first([], {}, cuda, stage).name for stage in (0, 1, 2, 3)] == ["torch"] * 4
    monkeypatch.setattr(optimizer, "choice", "apex")
    assert [optimizer.first([], {}, cuda, stage).name for stage in (0, 1, 2)] == ["apex"] * 3
    with pytest.raises(UserError, match="counts updates wrongly at ZeRO stage 3"):
        optimizer.first([], {}, cuda, 3)
