"""Attempts at one run: each has its own number, and earlier ones learn that they are superseded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mvlm.checkpoint.fencing import FencingToken
from mvlm.errors import UserError


def test_each_attempt_has_its_own_number(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: FencingToken(tmp_path).number, range(40)))
    assert sorted(numbers) == list(range(1, 41))


def test_only_the_newest_is_not_superseded(tmp_path: Path) -> None:
    first = FencingToken(tmp_path)
    assert not first.superseded()
    second = FencingToken(tmp_path)
    assert first.superseded()
    assert not second.superseded()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"run.dir"):
        FencingToken(tmp_path / "run")


def test_an_attempt_that_a_full_disk_stopped_breaks_no_chain(mount_disk: Callable[[str], Path]) -> None:
    disk = mount_disk("64k")
    chain = FencingToken(disk / "run").writer.chain
    (disk / "full").write_bytes(bytes(60 << 10))
    with pytest.raises(UserError, match="No space left"):
        FencingToken(disk / "run", resumes=True)
    (disk / "full").unlink()
    assert FencingToken(disk / "run", resumes=True).writer.chain == chain
