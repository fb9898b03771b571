"""Gradients under generated options and layouts: on one rank in this process, more of them in a campaign.

Those on two ranks are part of test_parity.py's launch.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mvlm.model.randomness import is_random, seed_dropout
from tests.ranks import run_ranks
from tests.training.gradient_matrix import (
    EXACT,
    OPTIONS,
    G,
    Row,
    config_of,
    covering_rows,
    engine_of,
    errors,
    global_batch,
    name_of,
    reference_gradients,
    try_rows_for_four,
    worst,
)
from tests.training.saved_tensors import whole_tensors

PLAIN: Row = {option: values[-1] for option, values in OPTIONS.items()}


@pytest.mark.parametrize("row", [row for row in covering_rows() if row["ranks"] == 1], ids=name_of)
def test_gradients_are_autograds(one_rank: None, scenes: Path, row: Row) -> None:
    parameter, error = worst(row, str(scenes))
    assert error < EXACT, parameter


@pytest.mark.campaign
@pytest.mark.parametrize("ranks", OPTIONS["ranks"])
def test_gradients_are_autograds_whatever_four_values_meet(scenes: Path, tmp_path: Path, ranks: int) -> None:
    file = tmp_path / "errors.json"
    done = run_ranks(try_rows_for_four, str(scenes), file, ranks=ranks, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert list(found) == [name_of(row) for row in covering_rows(4) if row["ranks"] == ranks]
    assert {row: error for row, (_, error) in found.items() if error >= EXACT} == {}


@pytest.mark.parametrize(("values", "most"), [(2, 20), pytest.param(4, 150, marks=pytest.mark.campaign)])
def test_so_many_values_meet_in_some_row(values: int, most: int) -> None:
    rows = covering_rows(values)
    for options in itertools.combinations(OPTIONS, values):
        together = {tuple(row[option] for option in options) for row in rows}
        assert together == set(itertools.product(*(OPTIONS[option] for option in options)))
    assert len(rows) < most


@pytest.mark.parametrize("option", ["dropout", "drop_path"])
def test_another_micro_batch_is_another_draw(scenes: Path, option: str) -> None:
    """So that the comparison says something; without dropout any layout has the same gradient."""
    row = PLAIN | {option: OPTIONS[option][0]}
    one, two = (reference_gradients(row | {"accumulation": count}, str(scenes)) for count in (1, 2))
    assert max(errors(one, two).values()) > 0.1


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_temperature_beyond_its_bounds_goes_back_or_stays(one_rank: None, scenes: Path, stage: int) -> None:
    """Of an untrained model whoever raises the temperature lowers the loss."""
    row = PLAIN | {"accumulation": 2, "stage": stage}
    values = []
    for start in (0.6, 0.01):
        config = config_of(row, str(scenes), G // 2, "model.temperature_min=0.05")
        model, micro_batches = global_batch(config, 0, 1)
        model.temperature.value.data.fill_(start)
        engine = engine_of(model, config, {"zero_optimization": {"stage": stage}}, 1)
        for step in range(2):
            engine.step(micro_batches, 1.0, step)
        values.append(dict(whole_tensors(engine))["temperature.value"]["weight"].item() - start)
    assert values == [pytest.approx(0.0, abs=1e-6), pytest.approx(2 * config.optim.lr, rel=0.3)]


def test_draws_are_a_function_of_seed_step_and_place() -> None:
    draws = []
    for key in ((0, 3, 8), (0, 3, 16), (0, 4, 8), (1, 3, 8), (-1, 3, 8), (0, 3, 8)):
        seed_dropout(*key)
        draws.append(torch.rand(4).tolist())
    assert draws[-1] == draws[0]
    assert len({*map(tuple, draws)}) == 5


@pytest.mark.parametrize(
    ("dropout", "drop_path", "image", "text"),
    [(0.0, 0.0, False, False), (0.1, 0.0, True, True), (0.0, 0.5, True, False)],
)
def test_what_draws_is_known(scenes: Path, dropout: float, drop_path: float, image: bool, text: bool) -> None:
    config = config_of(PLAIN | {"dropout": dropout, "drop_path": drop_path}, str(scenes), 4)
    model, (batch, *_) = global_batch(config, 0, 1)
    model.train()

    def draws(module: nn.Module, *inputs: torch.Tensor) -> bool:
        before = torch.get_rng_state()
        module(*inputs)
        return not torch.equal(before, torch.get_rng_state())

    assert draws(model.vision, batch.image_BCHW) == is_random(model.vision) == image
    assert draws(model.text, batch.text_BL, batch.valid_BL) == is_random(model.text) == text
