"""A rank stays on those of its cores that are near its GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvlm.runtime.near_gpu import cores_of
from tests.conftest import ROOT

BOUND = """
import json, os, sys
from pathlib import Path
from mvlm.runtime.near_gpu import stay_near
near = stay_near("0000:dc:00.0", Path(sys.argv[1]))
print(json.dumps([near, sorted(os.sched_getaffinity(0))]))
"""


@pytest.mark.parametrize(
    ("text", "cores"), [("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), ("", set()), ("0,2-3", {0, 2, 3})]
)
def test_linuxs_lists_of_cores_are_read(text: str, cores: set[int]) -> None:
    assert cores_of(text) == cores


def test_a_rank_keeps_those_of_its_cores_that_are_near(tmp_path: Path) -> None:
    own = sorted(os.sched_getaffinity(0))
    device = tmp_path / "0000:dc:00.0"

    def bound(cores: str | None) -> list[object]:
        if cores is not None:
            device.mkdir(exist_ok=True)
            (device / "local_cpulist").write_text(f"{cores}\n")
        words = [sys.executable, "-c", BOUND, str(tmp_path)]
        return json.loads(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    assert bound(None) == [True, own], "Linux does not say which are near"
    assert bound(f"{own[0]},{own[-1] + 1}-{own[-1] + 9}") == [True, own[:1]]
    assert bound(f"{own[-1] + 1}-{own[-1] + 9}") == [False, own], "no near core belongs to this rank"
