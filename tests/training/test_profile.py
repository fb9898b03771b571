"""Requests for a trace are taken by the rank that is meant, or refused with a sentence, and are never fatal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mvlm.training.logging.profile import SELDOM_S, Profiling


def make_steps(profiling: Profiling, first: int, last: int) -> None:
    for step in range(first, last + 1):
        torch.ones(2).sum()
        profiling.stepped(step)


def test_a_running_job_traces_as_many_steps_as_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiling = Profiling(tmp_path)
    make_steps(profiling, 1, 2)
    (tmp_path / "profile").write_text("2 0\n")
    make_steps(profiling, 3, 4)
    assert not (tmp_path / "traces").exists()  # it has not looked for requests yet
    profiling.look()
    assert not (tmp_path / "profile").exists()
    make_steps(profiling, 5, 8)
    assert [path.name for path in (tmp_path / "traces").iterdir()] == ["step_00000006.rank_00000.json.gz"]
    assert "mvlm: Traced up to step 6" in capsys.readouterr().err
    profiling.close()


@pytest.mark.parametrize("words", ["0", "51", "many", "3 1", "3 -1", "1 0 0"])
def test_an_invalid_request_is_answered_with_what_to_write(
    tmp_path: Path, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").write_text(words)
    profiling = Profiling(tmp_path)
    make_steps(profiling, 1, 5)
    assert not (tmp_path / "profile").exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "write into it how many steps, 1 to 50, and, after a space, the rank, 0 to 0." in error
    assert not (tmp_path / "traces").exists()


def test_a_request_is_left_to_the_rank_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvlm.runtime.dist.world", lambda: 4)
    (tmp_path / "profile").write_text("1 3")
    make_steps(Profiling(tmp_path), 1, 2)
    assert (tmp_path / "profile").exists()
    monkeypatch.setattr("mvlm.runtime.dist.rank", lambda: 3)
    make_steps(Profiling(tmp_path), 1, 2)
    assert [path.name for path in (tmp_path / "traces").iterdir()] == ["step_00000001.rank_00003.json.gz"]


def test_ranks_other_than_the_first_look_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvlm.runtime.dist.world", lambda: 2)
    monkeypatch.setattr("mvlm.runtime.dist.rank", lambda: 1)
    now = 5.0
    monkeypatch.setattr("mvlm.training.logging.profile.time.monotonic", lambda: now)
    profiling = Profiling(tmp_path)
    (tmp_path / "profile").write_text("1 1")
    now += SELDOM_S - 1
    profiling.look()
    assert (tmp_path / "profile").exists()
    now += 1
    profiling.look()
    assert not (tmp_path / "profile").exists()
    profiling.close()


def test_a_trace_that_cannot_be_written_does_not_stop_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").write_text("1")
    (tmp_path / "traces").write_text("not a folder")
    profiling = Profiling(tmp_path)
    make_steps(profiling, 1, 2)
    assert "Tracing failed (" in capsys.readouterr().err


def test_a_run_that_ends_in_the_middle_of_a_trace_leaves_none(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("9")
    profiling = Profiling(tmp_path)
    make_steps(profiling, 1, 2)
    profiling.close()
    assert not (tmp_path / "traces").exists()
