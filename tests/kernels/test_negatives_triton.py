"""The negatives drawn, compared with scores in float64 and noise computed with Python's integers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mvlm.kernels.negatives import NEGATIVES
from tests.model.oracle import gumbel

TIE = 1e-4  # rounding may swap scores closer than this


@pytest.fixture(params=["triton", "torch"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(NEGATIVES, "choice", request.param)
    return request.param


def noisy_scores(inputs: dict[str, Any]) -> np.ndarray:
    """B x B in float64; -inf for a pair itself, its duplicates and pairs of other groups."""
    own, others, ids = (None if x is None else x.cpu() for x in (inputs["own"], inputs["others"], inputs["ids"]))
    scores = (own.double() @ others.double().T / inputs["temperature"].cpu().double()).numpy()
    for i, row in enumerate(inputs["position"].tolist()):
        for j, column in enumerate(inputs["position"].tolist()):
            scores[i, j] = (0.0 if inputs["uniform"] else scores[i, j]) + gumbel(inputs["seed"], row, column)
            duplicate = ids is not None and bool((ids[i] == ids[j]).any())
            if duplicate or i == j or i // inputs["group"] != j // inputs["group"]:
                scores[i, j] = -math.inf
    return scores


def draw_negatives(inputs: dict[str, Any]) -> Tensor:
    names = ("own", "others", "temperature", "position", "start", "group", "seed", "ids", "uniform")
    return NEGATIVES(*(inputs[name] for name in names))


def make_inputs(count: int, width: int, group: int, generator: torch.Generator, device: torch.device) -> dict[str, Any]:
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
    inputs = make_inputs(count, width, group, generator, device) | {"uniform": uniform}
    if not excluding:
        inputs["ids"] = None
    scores, found = noisy_scores(inputs), draw_negatives(inputs).cpu().numpy()
    assert found.dtype == np.int64
    assert (scores[np.arange(count), found] >= scores.max(1) - TIE).all()
    assert (found // group == np.arange(count) // group).all()


@pytest.mark.parametrize(("count", "group"), [(4, 12), (6, 4), (18, 12), (9, 36)])
def test_a_part_of_the_batch_draws_the_same_negatives_as_the_whole(
    count: int, group: int, device: torch.device, generator: torch.Generator
) -> None:
    inputs = make_inputs(36, 24, group, generator, device)
    whole = draw_negatives(inputs)
    for start in range(0, 36, count):
        part = draw_negatives(inputs | {"own": inputs["own"][start : start + count], "start": start})
        assert part.tolist() == whole[start : start + count].tolist()


def test_no_noise_outweighs_every_similarity(device: torch.device, generator: torch.Generator) -> None:
    """Of 2**24 possible noises, these positions have the greatest."""
    inputs = make_inputs(3, 24, 3, generator, device) | {"seed": 7, "ids": None}
    inputs["position"] = torch.tensor([0, 825_408, 1], device=device)
    assert 17 < gumbel(7, 0, 825_408) < 18
    inputs["others"][1:] = torch.stack([-inputs["own"][0], inputs["own"][0]])
    assert draw_negatives(inputs)[0] == 2


def test_features_of_any_stride(device: torch.device, generator: torch.Generator) -> None:
    inputs = make_inputs(12, 24, 4, generator, device)
    strided = {name: inputs[name].T.contiguous().T for name in ("own", "others", "ids")}
    spread = inputs["position"].repeat_interleave(2)[::2]
    assert torch.equal(draw_negatives(inputs | strided | {"position": spread}), draw_negatives(inputs))


@pytest.mark.parametrize("temperature", [0.07, 1e-9])
def test_a_duplicate_is_not_drawn_at_any_temperature(
    temperature: float, device: torch.device, generator: torch.Generator
) -> None:
    inputs = make_inputs(20, 24, 20, generator, device)
    inputs["ids"][:, 0], inputs["ids"][:, 1] = torch.arange(20), torch.arange(20) // 19
    inputs["others"][19], inputs["temperature"][:] = -inputs["own"][:19].mean(0), temperature
    assert draw_negatives(inputs).tolist()[:19] == [19] * 19


def test_a_group_without_candidates_stays_within_itself(device: torch.device, generator: torch.Generator) -> None:
    inputs = make_inputs(12, 24, 4, generator, device)
    inputs["ids"][4:8] = 3
    found = draw_negatives(inputs).tolist()
    assert all(row // 4 == other // 4 for row, other in enumerate(found))


def test_other_pairs_are_drawn_even_if_features_are_not_finite(
    device: torch.device, generator: torch.Generator
) -> None:
    inputs = make_inputs(32, 24, 16, generator, device)
    inputs["own"][1], inputs["others"][2], inputs["others"][20] = float("nan"), float("inf"), float("-inf")
    for row, other in enumerate(draw_negatives(inputs).tolist()):
        assert other != row and other // 16 == row // 16


def test_an_empty_input_gives_an_empty_output(device: torch.device, generator: torch.Generator) -> None:
    assert draw_negatives(make_inputs(0, 24, 4, generator, device)).shape == (0,)


def test_many_groups(device: torch.device, generator: torch.Generator) -> None:
    """On a GPU, more than a grid's second dimension allows; the interpreter needs milliseconds for each."""
    count = 140_000 if device.type == "cuda" else 60
    inputs = make_inputs(count, 8, 2, generator, device) | {"ids": None}
    assert torch.equal(draw_negatives(inputs), torch.arange(count, device=device) ^ 1)
