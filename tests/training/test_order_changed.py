"""If data.shuffle_block changes when a run is resumed, the epoch keeps its order and the next one has the new order."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mvlm.checkpoint.layout import find_checkpoint
from mvlm.config.load import given_keys, load_config
from mvlm.training.fit.run import train
from tests.check.checked import check_run
from tests.conftest import ROOT, TINY
from tests.training.conftest import TOML, StopAfter, losses_by_step

EPOCH = 15
"""Steps of 16 pairs in an epoch, whose end is in the middle of another step."""
OLD, NEW, OTHER = ("data.shuffle_block=8", "data.shuffle_block=4", "data.shuffle_block=6")
CHANGE = "The order of the samples changes with epoch 1, from blocks of 8 rows"


def words(scenes: Path, run: Path, *overrides: str) -> list[str]:
    return [
        *TINY,
        f"data.train={scenes}/train",
        f"run.dir={run}",
        "train.steps=18",
        "data.shuffle=blocks",
        "data.shuffle_window=2",
        *overrides,
    ]


def forget_order(checkpoint: Path) -> None:
    """Make a checkpoint look as if it had been written before orders were recorded."""
    state, index = checkpoint / "state.json", json.loads((checkpoint / "index.json").read_text())
    content = json.loads(state.read_text())
    del content["order"]
    state.write_text(json.dumps(content))
    (entry,) = (entry for entry in index["files"] if entry["file"] == state.name)
    entry |= {"bytes": state.stat().st_size, "sha256": hashlib.sha256(state.read_bytes()).hexdigest()}
    (checkpoint / "index.json").write_text(json.dumps(index))


@pytest.mark.campaign
def test_an_epoch_ends_in_the_order_it_began_in(
    one_rank: None, own_signals: None, scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    deepspeed = str(ROOT / "ds_configs/cpu.json")
    runs = {name: tmp_path / name for name in ("old", "changed")}

    def attempt(name: str, order: str, until: int = 1000) -> int:
        given = words(scenes, runs[name], order)
        stop = StopAfter(runs[name], until)
        return train(load_config(TOML, given), (deepspeed, TOML), given_keys(TOML, given), stop=stop)

    assert attempt("old", OLD) == 0
    assert attempt("changed", OLD, until=5) == 75
    forget_order(find_checkpoint(runs["changed"]))
    report = check_run(TOML, words(scenes, runs["changed"], NEW), deepspeed, 1, deep=False)
    assert any(finding.sentence.startswith(CHANGE) for finding in report.findings)
    capfd.readouterr()
    assert attempt("changed", OTHER, until=9) == 75  # stops before this order would take effect
    assert f"{CHANGE}, 2 blocks together to blocks of 6 rows" in capfd.readouterr().err
    assert attempt("changed", NEW) == 0
    said = capfd.readouterr().err
    assert f"{CHANGE}, 2 blocks together to blocks of 4 rows, 2 blocks together; epoch 0, which has begun, ends" in said
    old, changed = (losses_by_step(run) for run in runs.values())
    assert {step: changed[step] for step in range(1, EPOCH + 1)} == {step: old[step] for step in range(1, EPOCH + 1)}
    assert changed[EPOCH + 1] != old[EPOCH + 1]
    orders = json.loads((find_checkpoint(runs["changed"]) / "state.json").read_text())["order"]
    assert [(order["parameters"]["block"], order["from_epoch"]) for order in orders] == [(8, 0), (4, 1)]
