"""Drawn negatives against the scores in float64 and noise from Python's own integers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mvlm.kernels.negatives import NEGATIVES
from tests.model.oracle import gumbel

TIE = 1e-4  # scores closer than this may change places by rounding


@pytest.fixture(params=["triton", "torch"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(NEGATIVES, "choice", request.param)
    return request.param


def noisy_scores(draw: dict[str, Any]) -> np.ndarray:
    """B x B in float64, -inf for a pair itself and for those of other groups."""
    own, others, ids = (None if x is None else x.cpu() for x in (draw["own"], draw["others"], draw["ids"]))
    scores = (own.double() @ others.double().T / draw["temperature"].cpu().double()).numpy()
    for i, row in enumerate(draw["position"].tolist()):
        for j, column in enumerate(draw["position"].tolist()):
            scores[i, j] = (0.0 if draw["uniform"] else scores[i, j]) + gumbel(draw["seed"], row, column)
            duplicate = ids is not None and bool((ids[i] == ids[j]).any())
            if duplicate or i == j or i // draw["group"] != j // draw["group"]:
                scores[i, j] = -math.inf
    return scores


def drawn(draw: dict[str, Any]) -> Tensor:
    names = ("own", "others", "temperature", "position", "start", "group", "seed", "ids", "uniform")
    return NEGATIVES(*(draw[name] for name in names))


def make_draw(count: int, width: int, group: int, generator: torch.Generator, device: torch.device) -> dict[str, Any]:
    features = (torch.randn(count, width, generator=generator) for _ in range(2))
    own, others = (torch.nn.functional.normalize(x, dim=-1).to(device) for x in features)
    return {
        "own": own,
        "others": others,
        "temperature": torch.tensor([0.07], device=device),
        "position": torch.arange(count, device=device) + 10**10,
        "start": 0,
        "group": group,
        "seed": 2**31 + 11,
        "ids": torch.randint(0, count + 1, (count, 2), generator=generator).to(device),
        "uniform": False,
    }


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("excluding", [False, True])
@pytest.mark.parametrize(("count", "width", "group"), [(2, 5, 2), (12, 24, 4), (21, 33, 7), (80, 64, 40), (48, 1, 16)])
def test_the_highest_noisy_score_is_drawn(
    count: int,
    width: int,
    group: int,
    excluding: bool,
    uniform: bool,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    draw = make_draw(count, width, group, generator, device) | {"uniform": uniform}
    if not excluding:
        draw["ids"] = None
    scores, found = noisy_scores(draw), drawn(draw).cpu().numpy()
    assert found.dtype == np.int64
    assert (scores[np.arange(count), found] >= scores.max(1) - TIE).all()
    assert (found // group == np.arange(count) // group).all()


@pytest.mark.parametrize(("count", "group"), [(4, 12), (6, 4), (18, 12), (9, 36)])
def test_a_part_of_the_pairs_draws_as_it_does_among_all(
    count: int, group: int, device: torch.device, generator: torch.Generator
) -> None:
    draw = make_draw(36, 24, group, generator, device)
    whole = drawn(draw)
    for start in range(0, 36, count):
        part = drawn(draw | {"own": draw["own"][start : start + count], "start": start})
        assert part.tolist() == whole[start : start + count].tolist()


def test_no_noise_outweighs_every_similarity(device: torch.device, generator: torch.Generator) -> None:
    """Of 2**24 possible noises, these positions have the greatest."""
    draw = make_draw(3, 24, 3, generator, device) | {"seed": 7, "ids": None}
    draw["position"] = torch.tensor([0, 825_408, 1], device=device)
    assert 17 < gumbel(7, 0, 825_408) < 18
    draw["others"][1:] = torch.stack([-draw["own"][0], draw["own"][0]])
    assert drawn(draw)[0] == 2


def test_features_of_any_stride(device: torch.device, generator: torch.Generator) -> None:
    draw = make_draw(12, 24, 4, generator, device)
    strided = {name: draw[name].T.contiguous().T for name in ("own", "others", "ids")}
    spread = draw["position"].repeat_interleave(2)[::2]
    assert torch.equal(drawn(draw | strided | {"position": spread}), drawn(draw))


@pytest.mark.parametrize("temperature", [0.07, 1e-9])
def test_no_temperature_draws_a_duplicate(temperature: float, device: torch.device, generator: torch.Generator) -> None:
    draw = make_draw(20, 24, 20, generator, device)
    draw["ids"][:, 0], draw["ids"][:, 1] = torch.arange(20), torch.arange(20) // 19
    draw["others"][19], draw["temperature"][:] = -draw["own"][:19].mean(0), temperature
    assert drawn(draw).tolist()[:19] == [19] * 19


def test_a_group_with_nothing_to_draw_stays_in_itself(device: torch.device, generator: torch.Generator) -> None:
    draw = make_draw(12, 24, 4, generator, device)
    draw["ids"][4:8] = 3
    found = drawn(draw).tolist()
    assert all(row // 4 == other // 4 for row, other in enumerate(found))


def test_features_that_are_not_finite_still_give_other_pairs(device: torch.device, generator: torch.Generator) -> None:
    draw = make_draw(32, 24, 16, generator, device)
    draw["own"][1], draw["others"][2], draw["others"][20] = float("nan"), float("inf"), float("-inf")
    for row, other in enumerate(drawn(draw).tolist()):
        assert other != row and other // 16 == row // 16


def test_no_rows_are_no_draws(device: torch.device, generator: torch.Generator) -> None:
    assert drawn(make_draw(0, 24, 4, generator, device)).shape == (0,)


def test_many_groups(device: torch.device, generator: torch.Generator) -> None:
    """More than a grid's second dimension takes; the interpreter needs milliseconds a group."""
    count = 140_000 if device.type == "cuda" else 60
    draw = make_draw(count, 8, 2, generator, device) | {"ids": None}
    assert torch.equal(drawn(draw), torch.arange(count, device=device) ^ 1)
