"""A held rank imports all that it needs, and touches nothing of the run before it is told to begin."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from mvlm.errors import ExitCode
from mvlm.runtime.launch import HELD
from tests.conftest import TINY
from tests.ranks import Copy, mvlm


@pytest.mark.parametrize("released", [True, False])
def test_a_held_rank_waits_for_a_word_and_ends_without_it(released: bool, scenes: Path, tmp_path: Path) -> None:
    pipe, run = str(tmp_path / "pipe"), tmp_path / "run"
    os.mkfifo(pipe)
    words = ["train", "mvlm/configs/tiny.toml", "--deepspeed_config", "ds_configs/cpu.json", *TINY]
    words += [f"data.train={scenes / 'train'}", f"run.dir={run}", "train.steps=1"]
    rank = Copy(held, pipe, words, **{HELD: "1"})
    with open(pipe, "wb", buffering=0) as word:
        deadline = time.monotonic() + 300
        while not reads(rank.pid, pipe):
            assert rank.poll() is None and time.monotonic() < deadline, rank.stderr
            time.sleep(0.1)
        assert not run.exists()
        if released:
            word.write(b"\n")
    assert rank.wait() == (ExitCode.DONE if released else ExitCode.REQUEUE), rank.stderr
    assert run.exists() == released


def held(pipe: str, words: list[str]) -> int:
    """What the rank runs: `mvlm` with a pipe as its standard input."""
    sys.stdin = open(pipe)  # noqa: SIM115 - until this process ends
    return mvlm(*words)


def reads(pid: int, path: str) -> bool:
    """Whether a process is blocked reading a file."""
    call = Path(f"/proc/{pid}/syscall").read_text().split()  # its number and arguments, or "running"
    return call[0] == "0" and os.readlink(f"/proc/{pid}/fd/{int(call[1], 16)}") == path
