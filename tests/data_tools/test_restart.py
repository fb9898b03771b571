"""A run that is killed resumes when it is started again, and ends in the bytes of a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from made import photo, run, tree, write_captions, write_folder

from data_tools.__main__ import main
from data_tools.pipeline import Options
from data_tools.record import Record
from data_tools.sharding import shard
from data_tools.store.folder import FolderStore
from data_tools.store.store import unsealed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 records of two groups, among them missing, broken and equal images, and an id that comes twice."""
    folder = tmp_path_factory.mktemp("restart") / "in"
    records = write_folder(folder, 240, group=lambda number: f"g{number % 40}")
    for number in (10, 60, 150):
        (folder / f"images/{number}.jpg").unlink()
    for number in (20, 120):
        (folder / f"images/{number}.jpg").write_bytes(b"<html>404</html>")
    for number in (30, 130, 230):
        (folder / f"images/{number}.jpg").write_bytes(photo(1, size=(25, 18)))
    records[200]["id"] = "r5"
    write_captions(folder, records)
    return folder


def words(source: Path, out: Path, *more: object) -> list[str]:
    split = ["--split", "train=0.8,eval=0.2", "--split-by", "group", "--dedup", "perceptual", "--shard-mb", "0.02"]
    return ["shard", "folder", str(source), "--out", str(out), *split, *map(str, more)]


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(*words(source, out, "--workers", 1))
    reasons = json.loads((out / "yield.json").read_text())["dropped"]
    assert reasons == {"duplicate id": 1, "image is a near duplicate": 3, "image is missing": 3, "not an image": 2}
    return tree(out)


def killed_at(argv: list[str], state: Path, count: int) -> bool:
    """Start the command and kill it, and all it started, once `count` states are there; False if it ended before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "data_tools", *argv],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and len(list(state.glob("*.state"))) < count:
        time.sleep(0.001)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


@pytest.mark.parametrize("workers", [1, 2])
def test_kills_change_nothing(source: Path, undisturbed: dict[str, bytes], tmp_path: Path, workers: int) -> None:
    argv = words(source, tmp_path / "out", "--workers", workers)
    state = tmp_path / ".out.partial/.state"
    kills = [count for count in (1, 4, 9) if killed_at(argv, state, count)]
    assert kills, "every run ended before it was killed"
    states = len(list(state.glob("*.state")))
    assert states >= max(kills)
    run(*argv)
    assert tree(tmp_path / "out") == undisturbed
    assert not (tmp_path / ".out.partial").exists()


def stopped(source: Path, out: Path, at: int) -> list[str]:
    """Leave a run that was killed after `at` shards; the command that resumes it."""
    argv = words(source, out, "--workers", 1)
    while not killed_at(argv, out.with_name(f".{out.name}.partial") / ".state", at):
        raise AssertionError("the run ended before it was killed")
    return argv


def test_finished_shards_are_not_made_again(source: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    argv = stopped(source, tmp_path / "out", 3)
    kept = {path: path.stat().st_ino for path in (tmp_path / ".out.partial").rglob("*.arrow")}
    assert len(kept) >= 3
    stored = [path.read_bytes() for path in (tmp_path / ".out.partial/.state").glob("*.state")]
    named = [json.loads(unsealed(content)[0]) for content in stored]
    done = {f"{state['split']}/{state['shard']['file']}" for state in named}
    run(*argv)
    for path, inode in kept.items():
        relative = str(path.relative_to(tmp_path / ".out.partial"))
        if relative in done:
            assert (tmp_path / "out" / relative).stat().st_ino == inode
    assert tree(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("damage", ["cut state", "lost shard", "half a shard left"])
def test_a_damaged_state_is_never_trusted(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = stopped(source, tmp_path / "out", 4)
    partial = tmp_path / ".out.partial"
    if damage == "cut state":
        last = sorted((partial / ".state").glob("*.state"))[1]
        os.truncate(last, last.stat().st_size // 2)
    elif damage == "lost shard":
        os.truncate(partial / "train/000000.arrow", 100)
    else:
        (partial / "train/000099.arrow.partial").write_bytes(b"half")
    run(*argv)
    assert ("starting afresh" in capsys.readouterr().err) == (damage == "lost shard")
    files = tree(tmp_path / "out")
    assert files == undisturbed


def test_a_damaged_state_and_those_after_it_make_way_for_new_ones(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    store = FolderStore(tmp_path / "work", tmp_path / "out")
    assert store.begin({"made": "of"}) == []
    for number in range(4):
        store.add_state(b"state %d" % number, b"seen")
    damaged = tmp_path / "work/.state/000001.state"
    os.truncate(damaged, damaged.stat().st_size - 1)
    again = FolderStore(tmp_path / "work", tmp_path / "out")
    assert again.begin({"made": "of"}) == [b"state 0"]
    again.add_state(b"another", b"")
    assert again.begin({"made": "of"}) == [b"state 0", b"another"]


def test_other_options_and_a_changed_source_start_afresh_and_say_so(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.symlink_to(source)
    argv = stopped(folder, tmp_path / "out", 3)
    run(*argv, "--longest-side", 16)
    assert "other options" in capsys.readouterr().err
    run(*words(source, tmp_path / "same", "--workers", 1, "--longest-side", 16))
    one, other = tree(tmp_path / "out"), tree(tmp_path / "same")
    assert one.pop("source.json") != other.pop("source.json")
    assert one == other

    argv = stopped(folder, tmp_path / "changed", 3)
    folder.unlink()
    write_folder(folder, 240, group=lambda number: f"h{number % 40}")
    (folder / "images/2.jpg").write_bytes(photo(9, size=(300, 300)))
    run(*argv)
    assert "starting afresh" in capsys.readouterr().err
    run(*words(folder, tmp_path / "direct", "--workers", 1))
    assert tree(tmp_path / "changed") == tree(tmp_path / "direct")


class Stop(Exception):
    """In the place of a kill."""


@pytest.mark.parametrize("change", ["an image of another size", "shorter"])
def test_a_source_that_changed_under_the_same_names_starts_afresh(
    tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing but the records themselves tells it: their options and what is known of the source stay."""
    records = [Record(f"r{n}", photo(n), ["noise"], where=f"made:{n}") for n in range(60)]
    options = Options(shard_bytes=10_000, origin={"made": "here"})
    read = 0

    def stop(_: int) -> None:
        nonlocal read
        read += 1
        if read == 50:
            raise Stop

    with pytest.raises(Stop):
        shard(records, tmp_path / "out", options, stop)
    assert len(list((tmp_path / ".out.partial/.state").glob("*.state"))) > 1
    changed = records[:4] if change == "shorter" else list(records)
    if change != "shorter":
        changed[2] = Record("r2", photo(2, size=(40, 30)), ["noise"], where="made:2")
    shard(changed, tmp_path / "out", options)
    assert "read a source that has changed since: starting afresh" in capsys.readouterr().err
    shard(changed, tmp_path / "direct", options)
    assert tree(tmp_path / "out") == tree(tmp_path / "direct")


def test_killed_while_cleaning_up(source: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    argv = stopped(source, tmp_path / "out", 3)
    plan = (tmp_path / ".out.partial/.state/plan.json").read_bytes()
    run(*argv)
    (tmp_path / "out/.state").mkdir()
    (tmp_path / "out/.state/plan.json").write_bytes(plan)
    run(*argv)
    assert tree(tmp_path / "out") == undisturbed


def test_the_plan_is_the_last_to_go(source: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """Killed at the first removal after the corpus got its name, the run is known to be finished."""
    code = (
        "import os, sys\n"
        "from data_tools.__main__ import main\n"
        "removed = []\n"
        "def watched(event, arguments):\n"
        "    if event == 'os.remove' and '/out/.state/' in str(arguments[0]):\n"
        "        removed.append(1)\n"
        "        if len(removed) == 3: os.kill(os.getpid(), 9)\n"
        "sys.addaudithook(watched)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    argv = words(source, tmp_path / "out", "--workers", 1)
    ended = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True)
    assert ended.returncode == -9
    assert (tmp_path / "out/.state/plan.json").exists()
    run(*argv)
    assert tree(tmp_path / "out") == undisturbed


def test_too_many_dropped_leaves_no_state(source: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    assert "were dropped" in fails(*words(source, tmp_path / "out", "--tolerate", 0.001))
    assert [path.name for path in tmp_path.iterdir()] == ["out.quarantine.jsonl"]


def test_two_runs_of_one_folder_are_kept_apart(source: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    import fcntl

    (tmp_path / ".out.partial").mkdir()
    held = os.open(tmp_path / ".out.partial", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert "Another process" in fails(*words(source, tmp_path / "out"))
    os.close(held)
    assert main(words(source, tmp_path / "out")) == 0
