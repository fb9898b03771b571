"""`mvlm reproduce` in miniature, from the published files to a table, in this process."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_tools.__main__ import main as data_tools
from mvlm.__main__ import main as mvlm
from mvlm.reproduce.results import OURS, numbers
from mvlm.reproduce.steps import TrainStep, Workplace, chain
from mvlm.reproduce.tables import TABLES
from mvlm.runtime.chain import run_chain
from tests.conftest import signals_kept
from tests.training.conftest import read_metrics

QUICK = "nlvr2"
"""The table that every test run makes."""

Execute = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def execute(one_rank: None) -> Iterator[Execute]:
    """execute(command line) -> exit code, as `mvlm.runtime.chain.execute` does, without a process of its own."""
    interrupt = signal.getsignal(signal.SIGINT)

    def run(words: list[str]) -> int:
        assert words[:2] == [sys.executable, "-m"]
        command = {"data_tools": data_tools, "mvlm": mvlm}[words[2]]
        return command([*words[3:], *(("--workers", "1") if words[3] == "shard" else ())])

    with signals_kept():
        yield run
    signal.signal(signal.SIGINT, interrupt)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of all tables, which share their shards and runs."""
    return tmp_path_factory.mktemp("reproduced")


def workplace(out: Path, *overrides: str) -> Workplace:
    return Workplace(
        out / "data", out, (sys.executable, "-m", "mvlm"), "ds_configs/cpu.json", overrides, miniature=True
    )


def test_a_table_is_made_from_the_best_epoch_and_resumed(execute: Execute, out: Path) -> None:
    table, here = TABLES[QUICK], workplace(out, "train.steps=4", "train.global_batch=16")
    steps, ran = chain(table, here), list[str]()

    def execute_and_note(words: list[str]) -> int:
        ran.append(" ".join(words[2:5]))
        return execute(words)

    assert run_chain(steps, execute_and_note) == 0
    assert len(ran) == len(steps)

    scores = {
        line["step"]: line["eval/accuracy"]
        for line in read_metrics(out / "runs/base_4m_nlvr2")
        if "eval/accuracy" in line
    }
    assert set(scores) == {2, 4}, "an epoch of 32 sentences is two batches of 16, and the last step is evaluated too"
    best = min(scores, key=lambda step: (-scores[step], step))
    tested = json.loads((out / "results/base_4m_nlvr2-nlvr2_test-nlvr2.json").read_text())
    assert tested["step"] == best and tested["rows"] == 16
    assert set(tested["by_kind"]) == {"True", "False"}, "the labels that predictions are compared with"
    dev = json.loads((out / "results/base_4m_nlvr2-nlvr2_dev-nlvr2.json").read_text())
    assert dev["accuracy"] == scores[best], "the tested weights are those that were evaluated during training"
    found = numbers(table, here)["accuracy"]
    assert found[OURS] == [100 * dev["accuracy"], 100 * tested["accuracy"]] and found["paper"] == [81.58, 81.98]

    ran.clear()
    assert run_chain(steps, execute_and_note) == 0 and not ran, "everything is done already"
    of_dev, of_test = (out / f"results/base_4m_nlvr2-nlvr2_{split}-nlvr2.json" for split in ("dev", "test"))
    of_dev.write_text(json.dumps(dev | {"weights_fingerprint": "of a run that was deleted"}))
    of_test.unlink()
    index = out / f"runs/base_4m_nlvr2/checkpoints/step_{best:08d}/index.json"
    os.utime(index, (index.stat().st_mtime + 3600,) * 2)  # as if copied later, or written where the clock is ahead
    assert run_chain(chain(table, here), execute_and_note) == 0
    assert ran == ["mvlm evaluate nlvr2"] * 2
    assert numbers(table, here)["accuracy"][OURS] == found[OURS]
    assert json.loads(of_dev.read_text()) == dev
    longer = TrainStep(workplace(out, "train.steps=5", "train.global_batch=16"), "base_4m")
    assert not longer.is_done(), "a run resumes if more updates are asked for"


@pytest.mark.campaign
@pytest.mark.parametrize("name", [name for name in TABLES if name != QUICK])
def test_every_table_is_made(execute: Execute, out: Path, name: str) -> None:
    table, here = TABLES[name], workplace(out / "whole")
    steps = chain(table, here)
    assert run_chain(steps, execute) == 0
    assert all(step.is_done() for step in steps)
    for row, found in numbers(table, here).items():
        (cells,) = [each.measured for each in table.rows if each.name == row]
        missing = [value is None for value in found[OURS]]
        assert missing == [not cell or not cell.path for cell in cells], row
    if name == "reconstruction":
        assert list((out / "whole/results").rglob("*.png"))
