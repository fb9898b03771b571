"""Some of the faults of benchmarks/faults, so that each change meets a few; the long campaign meets all, and often."""

from __future__ import annotations

from pathlib import Path

from benchmarks.faults.trial import Workshop


def test_a_run_that_much_befalls_ends_as_one_that_was_left_alone(tmp_path: Path) -> None:
    kinds = ["nan", "kill_in_save"]
    lines = Workshop(tmp_path / "workshop", steps=32).trial(seed=1, kinds=kinds)
    assert len(lines) >= 2  # a machine that is very busy may let the run end before the last
    for line in lines:
        assert line["problems"] == [], line
        assert line["losses equal"], line
        assert (line["samples lost"], line["samples in other places"]) == (0, 0), line
