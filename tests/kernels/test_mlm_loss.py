"""The words' cross-entropies against their formula in float64; Liger's in a process of its own where no GPU is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mvlm.batch import MetricAccumulator
from mvlm.kernels import probes
from mvlm.kernels.mlm_loss import MLM_LOSS, by_liger, by_torch
from tests.conftest import ROOT
from tests.kernels.reference import check_against_float64

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(run: Callable, words: int, width: int, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*s, generator=generator).to(DEVICE) for s in ((words, width), (vocabulary, width))]
    inputs.append(torch.randn(vocabulary, generator=generator).to(DEVICE))
    target = torch.randint(vocabulary, (words,), generator=generator).to(DEVICE)

    def formula(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        logits = tokens @ weight.T + bias
        return (logits.exp().sum(-1).log() - logits[torch.arange(words), target]).sum()

    check_against_float64(lambda *x: run(*x, target), formula, lambda *x: by_torch(*x, target), *inputs)
    with torch.no_grad():
        tokens, weight, bias = inputs
        guess = (tokens @ weight.T + bias).argmax(-1) if words else target
    target[::2] = guess[::2]
    tally = MetricAccumulator()
    run(*(x.requires_grad_() for x in inputs), target, tally)
    assert tally.total == {"word_accuracy": words}
    assert float(tally.correct["word_accuracy"]) == int((guess == target).sum())


@pytest.mark.parametrize("words", [0, 1, 7])
def test_torch(words: int) -> None:
    check(by_torch, words, 8, 33)


def test_liger_is_taken_by_name_alone() -> None:
    x = torch.randn(3, 4)
    assert MLM_LOSS.first(x, torch.randn(9, 4), torch.randn(9), torch.tensor([0, 1, 8])).name == "torch"


@pytest.mark.skipif(probes.liger() is not None, reason=str(probes.liger()))
def test_liger() -> None:
    check(by_liger, 7, 8, 50)


def test_liger_in_tritons_interpreter() -> None:
    pytest.importorskip("liger_kernel")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", f"{__file__}::test_liger"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
