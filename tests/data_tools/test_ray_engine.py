"""Ray makes the same bytes as one process, and survives the death of a worker.

Tests that need a Ray of their own are campaigns: tests/cluster/test_ray.py compares the bytes on a cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made import run, tree, write_folder

from data_tools.engines import Map, engine
from mvlm.errors import UserError

ROOT = Path(__file__).parents[2]
SIGTERM_UNDER_RAY = """
import os, signal, sys
from data_tools.engines import engine
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))
with engine("ray", 1, sys.argv[1]):
    os.kill(os.getpid(), signal.SIGTERM)
"""


def die_once(mark: str) -> str:
    """Kill the worker, but only the first time."""
    if not os.path.exists(mark):
        open(mark, "w").close()
        os._exit(1)
    return mark


def fail(item: int) -> int:
    raise ZeroDivisionError(item)


@pytest.fixture(scope="module")
def ray_map() -> Iterator[Map]:
    # Workers import this file's functions by name, as they would those of an installed package.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
        patch.delenv("RAY_ADDRESS", raising=False)
        with engine("ray", 2) as mapped:
            yield mapped


def weightless(item: object) -> int:
    return 0


@pytest.mark.campaign
def test_order_is_kept_and_reading_ahead_is_bounded(ray_map: Map) -> None:
    items = list(range(-300, 3))
    assert list(ray_map(abs, items, weightless)) == [(item, abs(item)) for item in items]
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    results = ray_map(abs, endless(), weightless)
    assert next(iter(results)) == (1, 1)
    assert read <= 3 * 2 * 32


@pytest.mark.campaign
def test_a_dead_worker_is_replaced_and_an_error_of_the_function_is_raised(ray_map: Map, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    assert list(ray_map(die_once, [mark], weightless)) == [(mark, mark)]
    with pytest.raises(ZeroDivisionError):
        list(ray_map(fail, [1], weightless))


@pytest.mark.campaign
def test_an_item_that_always_kills_its_worker_is_one_sentence(ray_map: Map) -> None:
    with pytest.raises(UserError, match="at or near 3"):
        list(ray_map(os._exit, [3], weightless))


@pytest.mark.campaign
def test_a_running_ray_makes_the_same_bytes(ray_map: Map, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command joins the running Ray as a second driver and sends its code along. Relative paths are relative to the
    folder that the command runs in, not to the one in which Ray was started."""
    import ray

    monkeypatch.chdir(tmp_path)
    write_folder(Path("in"), 100)
    Path("in/images/5.jpg").write_bytes(b"<html>404</html>")
    shard = ["shard", "folder", "in", "--shard-mb", "0.02", "--dedup", "perceptual", "--workers"]
    run(*shard, 1, "--out", "local")
    address = ray.get_runtime_context().gcs_address
    argv = [*shard, "2", "--out", "ray", "--engine", "ray", "--ray-address", address]
    ended = subprocess.run([sys.executable, "-m", "data_tools", *argv], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


@pytest.mark.campaign
def test_a_command_on_ray_handles_sigterm_itself(ray_map: Map) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    ended = subprocess.run([sys.executable, "-c", SIGTERM_UNDER_RAY, address], capture_output=True, text=True)
    assert ended.returncode == 75, ended.stderr


def test_an_address_without_ray_is_one_sentence(tmp_path: Path, fails: Callable[..., str]) -> None:
    write_folder(tmp_path / "in", 2)
    out = ("--out", tmp_path / "out", "--engine", "ray", "--ray-address", "127.0.0.1:1")
    assert "--ray-address" in fails("shard", "folder", tmp_path / "in", *out)
