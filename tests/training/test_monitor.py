"""What metrics.jsonl holds of values that are not finite and after a torn line, and what a person reads on the way."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest

from mvlm.config.schema import Log
from mvlm.runtime.commands import COLOURS
from mvlm.training.logging.monitor import Monitor
from tests.conftest import TINY
from tests.ranks import Copy, mvlm
from tests.training.conftest import TOML, read_metrics


def test_values_that_json_cannot_express_are_null(tmp_path: Path) -> None:
    with Monitor(tmp_path, 0, 2, Log(tensorboard=False)) as monitor:
        monitor.log({"step": 1, "loss": math.nan, "grad_norm": math.inf, "lr": 0.1})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "loss": None, "grad_norm": None, "lr": 0.1}


@pytest.mark.parametrize("torn", ["", '{"step": 3, "lo', '{"step": 3}'])
@pytest.mark.parametrize("whole", ["", '{"step": 1}\n{"step": 2}\n'])
def test_a_torn_line_is_removed_and_whole_ones_stay(tmp_path: Path, whole: str, torn: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(whole + torn)
    with Monitor(tmp_path, 2, 4, Log(tensorboard=False)) as monitor:
        monitor.log({"step": 3})
    assert (tmp_path / "metrics.jsonl").read_text() == whole + '{"step": 3}\n'


def test_lines_in_place_of_a_bar_say_how_much_time_is_left_and_why_an_evaluation_was_put_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in COLOURS:
        monkeypatch.delenv(name, raising=False)
    with Monitor(tmp_path, 0, 3, Log(tensorboard=False)) as monitor:
        monitor.log({"step": 1, "loss": 2.0})
        monitor.log({"step": 2, "eval/put_off": 130.9})
        monitor.log({"step": 2, "eval/mean_recall": 0.25})
        monitor.log({"step": 3, "loss": 1.0, "itc": -0.0001})
    first, later, measured, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"step 1  loss 2\.000  \d+ (s|min|h) left", first)
    assert later.startswith("step 2  held out: put off, as one took 131 s")
    assert (measured, last) == ("step 2  held out: mean_recall 0.250", "step 3  loss 1.000  itc 0.000")


def train_on_full_output(*words: str) -> int:
    for number in (1, 2):
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
    return mvlm("train", *words)


def test_a_run_whose_output_goes_to_a_full_disk_continues(tmp_path: Path, scenes: Path) -> None:
    (tmp_path / "deepspeed.json").write_text("{}")
    words = [*TINY, f"data.train={scenes}/train", f"run.dir={tmp_path / 'run'}", "train.steps=2"]
    run = Copy(train_on_full_output, TOML, "--deepspeed_config", str(tmp_path / "deepspeed.json"), *words)
    assert run.wait() == 0
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2]
