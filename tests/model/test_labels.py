"""The losses of fine-tuning compared with their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

from mvlm.model.losses.labels import answer_loss, label_loss


def test_the_answer_loss_is_binary_cross_entropy_summed_over_answers() -> None:
    logits_BA = torch.tensor([[1.5, -2.0, 0.0], [-0.5, 3.0, 40.0]])
    target_BA = torch.tensor([[0.9, 0.0, 0.3], [0.0, 1.0, 0.0]])
    total = 0.0
    for row, targets in zip(logits_BA.tolist(), target_BA.tolist(), strict=True):
        for logit, target in zip(row, targets, strict=True):
            right = 1 / (1 + math.exp(-logit))
            wrong = 1 / (1 + math.exp(logit))
            total -= target * math.log(right) + (1 - target) * math.log(wrong)
    assert answer_loss(logits_BA, target_BA).item() == pytest.approx(total / 2, rel=1e-6)


def test_the_label_loss_is_cross_entropy() -> None:
    logits_BA = torch.tensor([[1.5, -2.0, 0.0], [-0.5, 3.0, 1.0]])
    label_B = torch.tensor([2, 1])
    shares = [
        math.exp(row[label]) / sum(map(math.exp, row)) for row, label in zip(logits_BA.tolist(), [2, 1], strict=True)
    ]
    assert label_loss(logits_BA, label_B).item() == pytest.approx(-sum(map(math.log, shares)) / 2, rel=1e-6)


def test_losses_of_bf16_logits_are_summed_in_fp32() -> None:
    """Summed in bf16, the small terms of VQA's 3,129 answers would be lost."""
    logits_BA = torch.full((2, 3129), -8.0)
    target_BA = torch.zeros(2, 3129)
    expected = 3129 * math.log1p(math.exp(-8.0))
    assert answer_loss(logits_BA.bfloat16(), target_BA).item() == pytest.approx(expected, rel=2e-3)
