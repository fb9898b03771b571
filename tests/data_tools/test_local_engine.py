"""The parallel map keeps items in order, reads few ahead, and survives workers that die."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.engines.chunks import CHUNK_ITEMS
from data_tools.engines.local import LONGEST_FOLDER, ordered_map
from mvlm.errors import UserError
from tests.conftest import ROOT


def weightless(item: object) -> int:
    return 0


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    items = list(range(-200, 3))
    assert list(ordered_map(abs, items, weightless, workers)) == [(item, abs(item)) for item in items]


def test_at_most_three_chunks_per_worker_are_read_ahead() -> None:
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    results = ordered_map(abs, endless(), weightless, 2)
    assert next(results) == (1, 1)
    assert read <= 3 * 2 * CHUNK_ITEMS
    results.close()


def test_a_worker_that_dies_is_one_sentence() -> None:
    with pytest.raises(UserError, match="worker process died at or near 3"):
        list(ordered_map(os._exit, [3], weightless, 2))


def die_once(mark: str) -> str:
    """End the worker process if the file `mark` does not exist yet, and make it; return `mark`."""
    if not os.path.exists(mark):
        open(mark, "w").close()
        os._exit(1)
    return mark


def test_a_chunk_whose_worker_died_is_retried_in_its_place(tmp_path: Path) -> None:
    marks = [str(tmp_path / f"mark{number}") for number in range(3 * CHUNK_ITEMS)]
    for mark in marks[1:]:
        open(mark, "w").close()
    assert list(ordered_map(die_once, marks, weightless, 2)) == [(mark, mark) for mark in marks]


BUSY = """
import time
from data_tools.engines.local import ordered_map
for _ in ordered_map(time.sleep, [0] * 32 + [600] * 320, lambda seconds: 0, 2):
    print("begun", flush=True)
"""


def test_workers_end_when_their_parent_is_killed() -> None:
    """They hold its stdout open: as long as one lives, reading to the end does not return."""
    parent = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    assert parent.stdout and parent.stdout.readline() == "begun\n"
    parent.kill()
    parent.communicate(timeout=20)


@pytest.mark.parametrize("letters", [LONGEST_FOLDER, LONGEST_FOLDER + 1])
def test_the_temporary_folder_may_have_a_long_name(letters: int) -> None:
    code = "from data_tools.engines.local import ordered_map; print(*ordered_map(abs, [-3], lambda item: 0, 2))"
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="x" * 32, suffix="x" * (letters - len("/tmp/") - 40)) as folder:
        environment = os.environ | {"TMPDIR": folder}
        done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert len(folder) == letters and done.stdout == "(-3, 3)\n", done.stderr
