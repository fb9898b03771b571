"""JSON lines that are read while they are written, and what `mvlm watch` makes of them."""

from __future__ import annotations

import os
from pathlib import Path

from mvlm.runtime.jsonl import JsonLinesTail
from mvlm.watch.history import History, sparkline


def test_every_line_is_returned_once_as_soon_as_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLinesTail(path)
    assert lines.new() == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert lines.new() == [{"step": 1}, {"step": 2}]
    assert lines.new() == []
    with open(path, "a") as file:
        file.write('ep": 3}\nno json\n[4]\n{"step": 5}\n')
    assert lines.new() == [{"step": 3}, {"step": 5}]
    assert not lines.replaced


def test_only_new_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' * 1000)
    lines = JsonLinesTail(path)
    assert len(lines.new()) == 1000
    with open(path, "r+") as file:  # what has been read already
        file.write("X" * 100)
    with open(path, "a") as file:
        file.write('{"step": 2}\n')
    assert lines.new() == [{"step": 2}]


def test_a_torn_line_that_the_next_attempt_truncates_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "loss": 0.12345')
    lines = JsonLinesTail(path)
    assert lines.new() == [{"step": 1}]
    os.truncate(path, len('{"step": 1}\n'))
    with open(path, "a") as file:
        file.write('{"step": 2}\n')
    assert lines.new() == [{"step": 2}]
    assert not lines.replaced


def test_a_replaced_file_is_read_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    lines = JsonLinesTail(path)
    lines.new()
    (tmp_path / "new").write_text('{"step": 7}\n')
    os.replace(tmp_path / "new", path)
    assert lines.new() == [{"step": 7}]
    assert lines.replaced


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step:04d}1}}\n'.replace(" 0", " 1") for step in range(1000)))
    found = JsonLinesTail(path, tail=100).new()
    assert 4 <= len(found) <= 100 // len('{"step": 10001}\n')
    assert found[-1] == {"step": 19991}


def test_a_repeated_step_replaces_the_first_one_and_all_later_ones() -> None:
    history = History()
    for step in range(1, 11):
        history.add({"step": step, "loss": float(step), "pairs_per_s": 100.0})
    history.add({"step": 10, "eval/mean_recall": 0.1})
    for step in (6, 7):  # killed, and resumed from step 5
        history.add({"step": step, "loss": 60.0 + step, "pairs_per_s": 50.0})
    assert history.curve("loss") == [1.0, 2.0, 3.0, 4.0, 5.0, 66.0, 67.0]
    assert history.last["step"] == 7
    assert history.evaluation == {}  # of a step that has not been repeated yet
    history.add({"step": 8, "loss": None, "pairs_per_s": 50.0})  # not finite
    history.add({"step": 8, "eval/put_off": 40.0})
    assert len(history.curve("loss")) == 7
    assert history.evaluation == {}
    assert history.pairs_per_s == 50.0


def test_a_sparkline_follows_its_values() -> None:
    assert sparkline([0.0, 7.0, 3.5], 10) == "▁█▅"
    assert sparkline([1.0, 1.0], 10) == "▁▁"
    assert sparkline([], 10) == ""
    long = sparkline([float(i) for i in range(1000)], 8)
    assert long == "▁▂▃▄▅▆▇█"
