"""A killed run resumes when it is started again, and writes the same bytes as a run that was not interrupted."""

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
from typing import Any

import pytest
from made import photo, run, tree, write_captions, write_folder

from data_tools import task
from data_tools.__main__ import main
from data_tools.part import PartManifest
from data_tools.store.folder import FolderStore
from data_tools.task import PartJob, make_part

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 records in 40 groups, with missing, broken and duplicate images, and one duplicate id."""
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


def shard_command(source: Path, out: Path, *more: object, workers: int = 1) -> list[str]:
    options = ["--split", "train=0.8,eval=0.2", "--split-by", "group", "--dedup", "perceptual", "--shard-mb", "0.02"]
    return ["shard", "folder", str(source), "--out", str(out), *options, "--workers", str(workers), *map(str, more)]


@pytest.fixture(scope="module")
def uninterrupted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    run(*shard_command(source, out))
    reasons = json.loads((out / "yield.json").read_text())["dropped"]
    assert reasons == {"duplicate id": 1, "image is a near duplicate": 3, "image is missing": 3, "not an image": 2}
    return tree(out)


def killed_after(argv: list[str], state: Path, count: int) -> bool:
    """Start the command and kill its process group once `count` parts are finished; False if it ended first."""
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


def test_a_run_killed_twice_writes_the_same_bytes(
    source: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    argv = shard_command(source, tmp_path / "out", workers=2)
    state = tmp_path / ".out.partial/.state"
    for count in (1, 8):
        assert killed_after(argv, state, count), "the run ended before it could be killed"
        assert len(list(state.glob("*.part"))) >= count
    run(*argv)
    assert tree(tmp_path / "out") == uninterrupted
    assert not (tmp_path / ".out.partial").exists()


@pytest.fixture(scope="module")
def interrupted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a run killed after four parts leaves behind. Tests resume copies of it."""
    folder = tmp_path_factory.mktemp("interrupted")
    assert killed_after(shard_command(source, folder / "out"), folder / ".out.partial/.state", 4)
    return folder / ".out.partial"


def resume_command(interrupted: Path, source: Path, out: Path) -> list[str]:
    """Copy the interrupted run beside `out` and return the command that resumes it."""
    shutil.copytree(interrupted, out.with_name(f".{out.name}.partial"))
    return shard_command(source, out)


def test_finished_parts_are_not_made_again(
    source: Path, uninterrupted: dict[str, bytes], interrupted: Path, tmp_path: Path
) -> None:
    argv, partial = resume_command(interrupted, source, tmp_path / "out"), tmp_path / ".out.partial"
    done = FolderStore(partial, tmp_path / "out").parts()
    kept = {name: (partial / name).stat().st_ino for part in done for name in part.files if name.endswith(".arrow")}
    assert len(done) >= 4 and len(kept) >= 4
    made = []

    def recording(job: PartJob, number: int, *more: Any) -> PartManifest:
        made.append(number)
        return make_part(job, number, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "make_part", recording)
        run(*argv)
    assert made and made == list(range(len(done), len(done) + len(made)))
    pruned = {"000002", "000001", "000004"}  # rewritten without their duplicates
    inodes = {name: (tmp_path / "out" / name).stat().st_ino for name in kept if name[-12:-6] not in pruned}
    assert inodes and inodes.items() <= kept.items()
    assert tree(tmp_path / "out") == uninterrupted


@pytest.mark.parametrize("damage", ["cut state", "lost shard", "half a shard left"])
def test_only_what_is_damaged_is_made_again(
    source: Path, uninterrupted: dict[str, bytes], interrupted: Path, tmp_path: Path, damage: str
) -> None:
    argv, partial = resume_command(interrupted, source, tmp_path / "out"), tmp_path / ".out.partial"
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
    assert tree(tmp_path / "out") == uninterrupted


def test_other_options_or_a_changed_source_start_afresh_with_a_message(
    source: Path, interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = resume_command(interrupted, source, tmp_path / "out")
    run(*argv, "--longest-side", 16)
    assert "other options" in capsys.readouterr().err
    run(*shard_command(source, tmp_path / "same", "--longest-side", 16))
    assert tree(tmp_path / "out") == tree(tmp_path / "same")

    folder = tmp_path / "in"
    write_folder(folder, 60, group=lambda number: f"g{number % 40}")
    argv = shard_command(folder, tmp_path / "changed")
    shutil.copytree(interrupted, tmp_path / ".changed.partial")
    plan = tmp_path / ".changed.partial/.state/plan.json"
    plan.write_text(plan.read_text().replace(json.dumps(str(source)), json.dumps(str(folder))))
    run(*argv)
    assert "starting afresh" in capsys.readouterr().err
    run(*shard_command(folder, tmp_path / "direct"))
    assert tree(tmp_path / "changed") == tree(tmp_path / "direct")


def test_a_run_killed_while_cleaning_up_counts_as_finished(
    source: Path, uninterrupted: dict[str, bytes], interrupted: Path, tmp_path: Path
) -> None:
    argv = resume_command(interrupted, source, tmp_path / "out")
    plan = (tmp_path / ".out.partial/.state/plan.json").read_bytes()
    run(*argv)
    (tmp_path / "out/.state").mkdir()
    (tmp_path / "out/.state/plan.json").write_bytes(plan)
    run(*argv)
    assert tree(tmp_path / "out") == uninterrupted


def test_the_plan_is_removed_last(source: Path, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    """A run killed while it removes its state, once the corpus is in place, still counts as finished."""
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
    argv = shard_command(source, tmp_path / "out")
    ended = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True)
    assert ended.returncode == -9
    assert (tmp_path / "out/.state/plan.json").exists()
    run(*argv)
    assert tree(tmp_path / "out") == uninterrupted


def test_a_run_that_drops_too_many_records_leaves_no_state(
    source: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    assert "were dropped" in fails(*shard_command(source, tmp_path / "out", "--tolerate", 0.001))
    assert [path.name for path in tmp_path.iterdir()] == ["out.quarantine.jsonl"]


def test_a_second_run_into_the_same_folder_is_refused(source: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    import fcntl

    (tmp_path / ".out.partial").mkdir()
    held = os.open(tmp_path / ".out.partial", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert "Another process" in fails(*shard_command(source, tmp_path / "out"))
    os.close(held)
    assert main(shard_command(source, tmp_path / "out")) == 0


def test_a_disk_that_does_not_answer_is_a_transient_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job should be started again. A socket, which cannot be opened as a file, stands in for such a disk."""
    plan = tmp_path / ".out.partial/.state/plan.json"
    plan.parent.mkdir(parents=True)
    monkeypatch.chdir(plan.parent)
    with socket.socket(socket.AF_UNIX) as unanswered:
        unanswered.bind(plan.name)
    command = ["synth", "--task", "caption", "--count", "4", "--out", str(tmp_path / "out")]
    assert main(command) == 75
    said = capsys.readouterr().err
    assert said.startswith("mvlm-data: [Errno 6] ") and "run the same command again where that disk" in said
    assert main(command) == 0
