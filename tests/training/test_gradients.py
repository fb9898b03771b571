"""Gradients under generated options and layouts: on one rank in this process, more of them in a campaign.

The launch of test_parity.py tries those on two ranks.
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
def test_gradients_equal_autograds(one_rank: None, scenes: Path, row: Row) -> None:
    parameter, error = worst(row, str(scenes))
    assert error < EXACT, parameter


@pytest.mark.campaign
@pytest.mark.parametrize("ranks", OPTIONS["ranks"])
def test_gradients_equal_autograds_for_every_four_values(scenes: Path, tmp_path: Path, ranks: int) -> None:
    file = tmp_path / "errors.json"
    done = run_ranks(try_rows_for_four, str(scenes), file, ranks=ranks, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert list(found) == [name_of(row) for row in covering_rows(4) if row["ranks"] == ranks]
    assert {row: error for row, (_, error) in found.items() if error >= EXACT} == {}


@pytest.mark.parametrize(("values", "most"), [(2, 20), pytest.param(4, 150, marks=pytest.mark.campaign)])
def test_rows_cover_every_combination_of_so_many_values(values: int, most: int) -> None:
    rows = covering_rows(values)
    for options in itertools.combinations(OPTIONS, values):
        together = {tuple(row[option] for option in options) for row in rows}
        assert together == set(itertools.product(*(OPTIONS[option] for option in options)))
    assert len(rows) < most


@pytest.mark.parametrize("option", ["dropout", "drop_path"])
def test_other_micro_batches_draw_otherwise(scenes: Path, option: str) -> None:
    """Or the comparison would prove nothing: without dropout any layout has the same gradient."""
    row = PLAIN | {option: OPTIONS[option][0]}
    one, two = (reference_gradients(row | {"accumulation": count}, str(scenes)) for count in (1, 2))
    assert max(errors(one, two).values()) > 0.1


def test_a_temperature_beyond_a_bound_moves_only_towards_it(one_rank: None, scenes: Path) -> None:
    """Raising the temperature lowers the loss of an untrained model."""
    moved = []
    for start in (0.6, 0.01):
        config = config_of(PLAIN, str(scenes), G, "model.temperature_min=0.05")
        model, micro_batches = global_batch(config, 0, 1)
        model.temperature.value.data.fill_(start)
        engine = engine_of(model, config, {"zero_optimization": {"stage": 0}}, 1)
        for step in range(2):
            engine.step(micro_batches, 1.0, step)
        moved.append(dict(whole_tensors(engine))["temperature.value"]["weight"].item() - start)
    assert moved == [pytest.approx(0.0, abs=1e-6), pytest.approx(2 * config.optim.lr, rel=0.3)]


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
def test_is_random_says_which_encoders_draw(
    scenes: Path, dropout: float, drop_path: float, image: bool, text: bool
) -> None:
    config = config_of(PLAIN | {"dropout": dropout, "drop_path": drop_path}, str(scenes), 4)
    model, (batch, *_) = global_batch(config, 0, 1)
    model.train()

    def draws(module: nn.Module, *inputs: torch.Tensor) -> bool:
        before = torch.get_rng_state()
        module(*inputs)
        return not torch.equal(before, torch.get_rng_state())

    assert draws(model.vision, batch.image_BCHW) == is_random(model.vision) == image
    assert draws(model.text, batch.text_BL, batch.valid_BL) == is_random(model.text) == text
