"""A run whose disk fails: whose mistake it is, and whether the run may be started again."""

from __future__ import annotations

import errno
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mvlm.errors import StorageLost, cannot_write
from tests.conftest import TINY
from tests.ranks import Copy, mvlm
from tests.training.conftest import TOML, TrainHere


def test_a_disk_that_turns_read_only_ends_the_run_with_the_code_for_requeue(
    scenes: Path, tmp_path: Path, mount_disk: Callable[[str], Path]
) -> None:
    """A file system turns read-only when its disk fails.

    It cannot be remounted while a file on it is open for writing, so the metrics are on another disk.
    """
    disk = mount_disk("40m")
    run = disk / "run"
    run.mkdir()
    (run / "metrics.jsonl").symlink_to(tmp_path / "metrics.jsonl")
    (tmp_path / "ds.json").write_text("{}")
    command = ["train", TOML, "--deepspeed_config", str(tmp_path / "ds.json")]
    command += [*TINY, f"data.train={scenes}/train", f"run.dir={run}", "train.steps=100000", "checkpoint.every=20"]
    training = Copy(mvlm, *command)
    deadline = time.monotonic() + 400
    while (
        not (run / "checkpoints/step_00000020").exists()
        or subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode
    ):  # busy while a file is being written
        assert time.monotonic() < deadline and training.poll() is None, training.stderr
        time.sleep(0.01)
    assert training.wait() == 75
    said = [line for line in training.stderr.splitlines() if line.startswith("mvlm: ")]
    assert len(said) == 1 and "cannot be reached" in said[0] and "Read-only file system" in said[0], said
    assert "start the same command again where it can be" in said[0]


def test_a_disk_that_is_read_only_when_a_run_is_resumed_is_not_the_users_mistake(
    mount_disk: Callable[[str], Path], train_here: TrainHere
) -> None:
    """A requeued attempt that exited with the code of a mistake before its first step would not be requeued again."""
    disk = mount_disk("40m")
    assert train_here(disk / "run") == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StorageLost, match=r"run cannot be reached .*Read-only file system.*same command again"):
        train_here(disk / "run", "train.steps=8")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        *((number, 75) for number in (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ESTALE, errno.ENOTCONN)),
        *((errno.ETIMEDOUT, 75), (errno.ENOSPC, 1), (None, 1)),
    ],
)
def test_a_full_disk_is_the_users_mistake_and_a_lost_one_is_not(number: int | None, code: int) -> None:
    error = OSError(number, "the cause") if number else OSError("the cause")
    said = cannot_write("run/file", error, "free some room")
    assert said.exit_code == code and isinstance(said, StorageLost) == (code == 75)
    assert str(said).count(".") == 1 and ("free some room" in str(said)) == (code == 1)
