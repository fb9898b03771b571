"""One of the faults of benchmarks/faults, to see that a campaign of them runs; it meets all of them, and often."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.trial import Workshop


@pytest.mark.campaign
def test_a_run_that_much_befalls_ends_as_one_that_was_left_alone(tmp_path: Path) -> None:
    lines = Workshop(tmp_path / "workshop", steps=16).trial(seed=1, kinds=["kill_in_save"])
    assert lines
    for line in lines:
        assert line["problems"] == [], line
        assert line["losses equal"], line
        assert (line["samples lost"], line["samples in other places"]) == (0, 0), line
