"""The contrastive loss, split into micro-batches, compared with the gradient of its formula in float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mvlm.errors import UserError
from mvlm.kernels import contrastive, contrastive_triton
from mvlm.kernels.contrastive import CONTRASTIVE, LOG_SUM_EXPS, PAYS, WIDEST


@pytest.fixture(params=["triton", "torch"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for op in (LOG_SUM_EXPS, CONTRASTIVE):
        monkeypatch.setattr(op, "choice", request.param)
    return request.param


class Pairs(NamedTuple):
    image_GE: Tensor
    text_GE: Tensor
    temperature: Tensor
    ids_G2: Tensor


def make_pairs(count: int, width: int, temperature: float, generator: torch.Generator, device: torch.device) -> Pairs:
    """Unit features; about one pair in four shares its image or caption with another."""
    features = (torch.randn(count, width, generator=generator) for _ in range(2))
    image_GE, text_GE = (torch.nn.functional.normalize(x, dim=-1).to(device) for x in features)
    ids_G2 = torch.randint(0, 4 * count, (count, 2), generator=generator).to(device)
    ids_G2[count // 3, 0], ids_G2[count - 1, 1] = ids_G2[0, 0], ids_G2[count // 2, 1]
    return Pairs(image_GE, text_GE, torch.tensor([temperature], device=device), ids_G2)


def candidates(pairs: Pairs, excluding: bool) -> Tensor:
    """G x G bool: each pair itself and its negatives."""
    same = (pairs.ids_G2[:, None] == pairs.ids_G2).any(-1) & excluding
    return ~same | torch.eye(len(same), dtype=torch.bool, device=same.device)


def reference(pairs: Pairs, excluding: bool) -> tuple[Tensor, list[Tensor]]:
    """In float64: the log-sum-exps as G x 2, and the gradients of the sum of the losses for images and texts."""
    image, text, temperature = (tensor.double().requires_grad_() for tensor in pairs[:3])
    scores = image @ text.T / temperature
    kept = scores.masked_fill(~candidates(pairs, excluding), float("-inf"))
    lse = torch.stack([kept.logsumexp(1), kept.logsumexp(0)], 1)
    losses = lse.mean(1) - scores.diagonal()
    return lse.detach(), list(torch.autograd.grad(losses.sum(), (image, text)))


SHAPES = [
    (1, 20, 1, 0.07),  # pairs of the global batch, width, pairs of a micro-batch, temperature
    (7, 1, 7, 0.07),
    (17, 20, 12, 0.07),
    (40, 17, 35, 0.5),
    (32, 32, 32, 0.005),
]
"""No larger than every kind of tile (32 own rows, 16 others, 16 columns) needs, since the interpreter is slow."""


@pytest.mark.parametrize(("programs", "excluding"), [(256, False), (1, True)])
@pytest.mark.parametrize(("count", "width", "size", "temperature"), SHAPES)
def test_micro_batches_add_up_to_the_formula(
    count: int,
    width: int,
    size: int,
    temperature: float,
    excluding: bool,
    programs: int,
    device: torch.device,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the other pairs in one span of many tiles, and in many spans."""
    monkeypatch.setattr(contrastive_triton, "PROGRAMS", programs)
    monkeypatch.setattr(contrastive, "AT_ONCE", 64)
    pairs = make_pairs(count, width, temperature, generator, device)
    lse, gradients = reference(pairs, excluding)
    split = (count + 1) // 2  # the others come in two blocks, one of which may hold none of the own pairs
    for start in range(0, count, size):
        rows = slice(start, start + size)
        own = [features[rows] for features in pairs[:2]]
        found = [torch.full((len(own[0]),), float("-inf"), device=device) for _ in range(2)]
        at_own = [torch.zeros_like(features) for features in own]
        for first in range(0, count, split):
            block = slice(first, first + split)
            ids = (pairs.ids_G2[rows], pairs.ids_G2[block]) if excluding else ()
            for side in range(2):
                given = own[side], pairs[1 - side][block], pairs.temperature, start - first
                found[side] = torch.logaddexp(found[side], LOG_SUM_EXPS(*given, *ids))
                mine, theirs = lse[rows, side].float(), lse[block, 1 - side].float()
                at_own[side] += CONTRASTIVE(*given, mine, theirs, *ids)
        precision = {"rtol": 1e-5, "atol": 1e-6 / temperature}
        torch.testing.assert_close(torch.stack(found, 1).double(), lse[rows], **precision)
        for at_side, wanted in zip(at_own, gradients, strict=True):
            torch.testing.assert_close(at_side.double(), wanted[rows], rtol=1e-4, atol=1e-5 / temperature)


def test_features_of_any_stride(device: torch.device, generator: torch.Generator) -> None:
    pairs = make_pairs(20, 24, 0.07, generator, device)
    spread = pairs.text_GE.repeat_interleave(2, 1)[:, ::2]
    own = pairs.image_GE.T.contiguous().T[4:9]
    found = LOG_SUM_EXPS(own, spread, pairs.temperature, 4, None)
    torch.testing.assert_close(found.double(), reference(pairs, False)[0][4:9, 0], rtol=1e-5, atol=1e-5)


def test_an_empty_input_gives_an_empty_output(device: torch.device, generator: torch.Generator) -> None:
    pairs = make_pairs(8, 24, 0.07, generator, device)
    no_features, no_sums = pairs.image_GE[:0], torch.zeros(0, device=device)
    assert LOG_SUM_EXPS(no_features, pairs.text_GE, pairs.temperature, 3, None).shape == (0,)
    others = torch.zeros(8, device=device)
    gradient = CONTRASTIVE(no_features, pairs.text_GE, pairs.temperature, 3, no_sums, others, None)
    assert gradient.shape == (0, 24)


def test_the_error_in_bf16_is_at_most_twice_that_of_eager_bf16(
    device: torch.device, generator: torch.Generator
) -> None:
    pairs = make_pairs(64, 64, 0.07, generator, device)
    image, text = pairs.image_GE.bfloat16(), pairs.text_GE.bfloat16()
    expected = (image.double() @ text.double().T / pairs.temperature.double()).logsumexp(1)
    eager = (image @ text.T / pairs.temperature.bfloat16()).logsumexp(1)
    found = LOG_SUM_EXPS(image, text, pairs.temperature, 0, None)
    assert found.dtype == torch.float32
    assert (found.double() - expected).abs().max() <= 2 * (eager.double() - expected).abs().max()


def test_nan_shows_only_in_the_results_of_its_row(device: torch.device, generator: torch.Generator) -> None:
    pairs = make_pairs(8, 24, 0.07, generator, device)
    pairs.image_GE[5, 0] = float("nan")
    found = LOG_SUM_EXPS(pairs.image_GE, pairs.text_GE, pairs.temperature, 0, None)
    assert found.isnan().nonzero().flatten().tolist() == [5]
    zeros = torch.zeros(8, device=device)
    gradient = CONTRASTIVE(pairs.image_GE, pairs.text_GE, pairs.temperature, 0, zeros, zeros, None)
    assert gradient.isnan().any(1).nonzero().flatten().tolist() == [5]


def test_the_gradient_stays_bounded_when_recomputed_features_are_rounded_differently(
    device: torch.device, generator: torch.Generator
) -> None:
    """The log-sum-exp may then be lower than one of its own scores."""
    pairs = make_pairs(8, 24, 0.001, generator, device)
    lse = LOG_SUM_EXPS(pairs.image_GE, pairs.text_GE, pairs.temperature, 0, None) - 200
    gradient = CONTRASTIVE(pairs.image_GE, pairs.text_GE, pairs.temperature, 0, lse, lse, None)
    assert gradient.abs().max() <= 8 / 0.001


def test_triton_is_the_automatic_choice_only_for_large_global_batches(
    device: torch.device, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for op in (LOG_SUM_EXPS, CONTRASTIVE):
        monkeypatch.setattr(op, "choice", "auto")
        for count, name in ((PAYS - 1, "torch"), (PAYS, "triton")):
            assert op.first(torch.zeros(2, 1, device=device), torch.zeros(count, 1, device=device)).name == name
        wide = torch.zeros(1, WIDEST + 1, device=device), torch.zeros(PAYS, WIDEST + 1, device=device)
        assert op.first(*wide).name == "torch"
        if implementation == "triton":
            monkeypatch.setattr(op, "choice", "triton")
            with pytest.raises(UserError, match="width 513"):
                op(*wide)
