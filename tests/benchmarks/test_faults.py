"""One fault of benchmarks/faults, to see that its campaign works; the campaign itself meets all of them many times."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.faults.observed import Flips
from benchmarks.faults.trial import Workshop
from benchmarks.step.sizes import SIZES, build, make_batch
from mvlm.batch import Losses
from mvlm.training.zero.checksums import sum_bits

MISCOMPUTED = 40
"""Forward passes with a miscomputing layer, a different one each time."""


def test_a_miscomputing_layer_changes_losses_or_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    torch.manual_seed(0)
    model = build(SIZES["tiny"]).eval()  # without dropout
    batch = make_batch(SIZES["tiny"], grid=(4, 4))

    def computed(losses: Losses) -> list[int]:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(model.objectives.total(losses), parameters, allow_unused=True)
        return [int(sum_bits([tensor])) for tensor in (*losses.values(), *found) if tensor is not None]

    right = computed(model(batch))
    assert computed(model(batch)) == right
    for seed in range(MISCOMPUTED):
        (folder := tmp_path / str(seed)).mkdir()
        flips = Flips(folder, {"processor": [{"step": 7, "rank": 0, "seed": seed}]})
        flips.before(None, 7)  # type: ignore[arg-type]
        assert computed(flips.forward(model, lambda: model(batch))) != right
        said = (folder / "processor-7.json").read_text()
        flips.before(None, 7)  # type: ignore[arg-type]
        assert computed(flips.forward(model, lambda: model(batch))) == right, said  # only once


@pytest.mark.campaign
def test_a_run_with_faults_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    lines = Workshop(tmp_path / "workshop", steps=16).trial(seed=1, kinds=["kill_in_save"])
    assert lines
    for line in lines:
        assert line["problems"] == [], line
        assert line["losses equal"], line
        assert (line["samples lost"], line["samples in other places"]) == (0, 0), line
