"""A run that is killed resumes when it is started again, and ends in the bytes of a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from made import photo, run, tree, write_captions, write_folder

from data_tools import task
from data_tools.__main__ import main
from data_tools.store.folder import FolderStore
from data_tools.task import make_part

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
    """Start the command and kill it, and all it started, once `count` parts are finished; False if it ended before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "data_tools", *argv],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and len(list(state.glob("*.part"))) < count:
        time.sleep(0.001)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def test_kills_change_nothing(source: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    argv = words(source, tmp_path / "out", "--workers", 2)
    state = tmp_path / ".out.partial/.state"
    kills = [count for count in (1, 8) if killed_at(argv, state, count)]
    assert kills, "every run ended before it was killed"
    assert len(list(state.glob("*.part"))) >= max(kills)
    run(*argv)
    assert tree(tmp_path / "out") == undisturbed
    assert not (tmp_path / ".out.partial").exists()


@pytest.fixture(scope="module")
def stopped_once(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that was killed after four parts; never changed."""
    folder = tmp_path_factory.mktemp("stopped")
    assert killed_at(words(source, folder / "out", "--workers", 1), folder / ".out.partial/.state", 4)
    return folder / ".out.partial"


def stopped(stopped_once: Path, source: Path, out: Path) -> list[str]:
    """The same beside `out`, and the command that resumes it."""
    shutil.copytree(stopped_once, out.with_name(f".{out.name}.partial"))
    return words(source, out, "--workers", 1)


def test_finished_parts_are_not_made_again(
    source: Path, undisturbed: dict[str, bytes], stopped_once: Path, tmp_path: Path
) -> None:
    argv, partial = stopped(stopped_once, source, tmp_path / "out"), tmp_path / ".out.partial"
    done = FolderStore(partial, tmp_path / "out").parts()
    kept = {name: (partial / name).stat().st_ino for part in done for name in part.files if name.endswith(".arrow")}
    assert len(done) >= 4 and len(kept) >= 4
    begun = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            task, "make_part", lambda job, number, *more: begun.append(number) or make_part(job, number, *more)
        )
        run(*argv)
    assert begun == [number for number in range(len(done) + len(begun)) if number >= len(done)]
    pruned = {"000002", "000001", "000004"}  # whose rows were taken out again
    same = [
        (tmp_path / "out" / name).stat().st_ino == inode for name, inode in kept.items() if name[-12:-6] not in pruned
    ]
    assert same and all(same)
    assert tree(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("damage", ["cut state", "lost shard", "half a shard left"])
def test_only_what_is_damaged_is_made_again(
    source: Path, undisturbed: dict[str, bytes], stopped_once: Path, tmp_path: Path, damage: str
) -> None:
    argv, partial = stopped(stopped_once, source, tmp_path / "out"), tmp_path / ".out.partial"
    state, expected = FolderStore(partial, tmp_path / "out"), [0, 1, 2, 3]
    if damage == "cut state":
        os.truncate(partial / ".state/000001.part", 100)
        expected.remove(1)
    elif damage == "lost shard":
        os.truncate(partial / "train/000000.arrow", 100)
        expected.remove(0)
    else:
        (partial / "train/000099.arrow.partial").write_bytes(b"half")
    assert [part.number for part in state.parts()][: len(expected)] == expected
    run(*argv)
    assert tree(tmp_path / "out") == undisturbed


def test_other_options_and_a_changed_source_start_afresh_and_say_so(
    source: Path, stopped_once: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = stopped(stopped_once, source, tmp_path / "out")
    run(*argv, "--longest-side", 16)
    assert "other options" in capsys.readouterr().err
    run(*words(source, tmp_path / "same", "--workers", 1, "--longest-side", 16))
    assert tree(tmp_path / "out") == tree(tmp_path / "same")

    folder = tmp_path / "in"
    write_folder(folder, 60, group=lambda number: f"g{number % 40}")
    argv = words(folder, tmp_path / "changed", "--workers", 1)
    shutil.copytree(stopped_once, tmp_path / ".changed.partial")
    plan = tmp_path / ".changed.partial/.state/plan.json"
    plan.write_text(plan.read_text().replace(json.dumps(str(source)), json.dumps(str(folder))))
    run(*argv)
    assert "starting afresh" in capsys.readouterr().err
    run(*words(folder, tmp_path / "direct", "--workers", 1))
    assert tree(tmp_path / "changed") == tree(tmp_path / "direct")


def test_killed_while_cleaning_up(
    source: Path, undisturbed: dict[str, bytes], stopped_once: Path, tmp_path: Path
) -> None:
    argv = stopped(stopped_once, source, tmp_path / "out")
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


def test_a_disk_out_of_sight_is_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job is to be started again. What stands in for a disk that does not answer is a socket, which none can open."""
    plan = tmp_path / ".out.partial/.state/plan.json"
    plan.parent.mkdir(parents=True)
    monkeypatch.chdir(plan.parent)
    with socket.socket(socket.AF_UNIX) as unanswered:
        unanswered.bind(plan.name)
    command = ["synth", "--task", "caption", "--count", "4", "--out", str(tmp_path / "out")]
    assert main(command) == 75
    said = capsys.readouterr().err
    assert said.startswith("data_tools: [Errno 6] ") and "run the same command again where that disk" in said
    assert main(command) == 0
