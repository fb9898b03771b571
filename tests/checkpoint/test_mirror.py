"""Checkpoints in a mirror: what another node finds if they are late, incomplete, damaged or hostile.

No model is trained: the values in a checkpoint are its step.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mvlm.checkpoint.description import described_in
from mvlm.checkpoint.fencing import FencingToken
from mvlm.checkpoint.fetch import fetch_newest
from mvlm.checkpoint.folder_group import FolderGroup, _connected
from mvlm.checkpoint.integrity import find_damage
from mvlm.checkpoint.mirror import Mirror, MirrorPath
from mvlm.checkpoint.newest import newest_whole
from mvlm.checkpoint.upload import Uploads
from mvlm.config.load import load_config
from mvlm.config.schema import Checkpoint
from mvlm.errors import UserError
from mvlm.runtime import storage
from mvlm.training.checkpoint.save import Saver
from tests.training.conftest import TOML
from tests.training.mirror_worker import DESCRIPTION
from tests.training.saver_worker import Trained, save
from tests.training.test_saver import killed_at, weight_of


class Node:
    """A node whose run folder is its own and whose mirror other nodes may have used before."""

    def __init__(
        self,
        run: Path,
        mirror: Mirror,
        config: Checkpoint | None = None,
        resumes: bool = True,
        description: Mapping[str, bytes] = DESCRIPTION,
    ) -> None:
        self.run, self.mirror, self.engine = run, mirror, Trained()
        self.said: list[str] = []
        self.attempt = FencingToken(run, mirror, resumes)
        config = config or Checkpoint()
        self.uploads = Uploads(mirror, run, config, self.attempt, FolderGroup.of_all(), self.said.append)
        self.saver = Saver(self.engine, run, config, self.attempt, uploads=self.uploads, description=description)

    def save(self, *steps: int) -> None:
        for step in steps:
            save(self.saver, self.engine, step)
            self.uploads.drain()


def fetched(run: Path, mirror: Mirror) -> int:
    """The step that a new node resumes, whose checkpoint is checked in every bit."""
    assert fetch_newest(mirror, run, FolderGroup.of_all())
    checkpoint = newest_whole(run)
    assert find_damage(checkpoint) is None
    assert described_in(checkpoint) == checkpoint
    assert not list((run / "checkpoints").glob("*.partial-*"))
    assert weight_of(checkpoint) == int(checkpoint.name.removeprefix("step_"))
    return int(checkpoint.name.removeprefix("step_"))


@pytest.fixture
def store(tmp_path: Path) -> Mirror:
    return Mirror(f"file://{tmp_path}/mirror")


def test_a_kill_at_any_moment_of_uploading_leaves_a_whole_checkpoint(tmp_path: Path, store: Mirror) -> None:
    node = Node(tmp_path / "run", store, Checkpoint(keep=1))
    node.save(2)
    for name in ("mirror", "run"):
        shutil.copytree(tmp_path / name, tmp_path / f"{name} before")
    moment, found = 0, []
    alive = False
    while not alive:
        moment += 1
        for name in ("mirror", "run"):
            shutil.rmtree(tmp_path / name)
            shutil.copytree(tmp_path / f"{name} before", tmp_path / name)
        alive = not killed_at(moment, tmp_path / "mirror", lambda: node.save(4))
        found.append(fetched(tmp_path / f"node-{moment}", store))
    assert found == sorted(found) and set(found) == {2, 4}
    assert moment > 20
    shutil.rmtree(tmp_path / "mirror/checkpoints/step_00000004.attempt-1")
    half = tmp_path / "mirror/checkpoints/step_00000004.attempt-1/state.json"
    half.parent.mkdir()
    half.touch()
    Node(tmp_path / "node", store, Checkpoint(keep=1)).save(6)
    assert sorted(path.name for path in (tmp_path / "mirror/checkpoints").iterdir()) == [
        "latest",
        "step_00000006.attempt-2",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "../../../evil",
        "/tmp/evil",
        "weights-00000-of-00001.safetensors/../../evil",
        "index.json",
        "tokenizer/code.py",
        "tokenizer/../evil.json",
        "tokenizer/deeper/config.json",
        "text_encoder/.json",
        "",
        None,
        "state.json\n",
    ],
)
def test_a_hostile_index_is_refused(tmp_path: Path, store: Mirror, name: str | None) -> None:
    Node(tmp_path / "run", store).save(2)
    index = tmp_path / "mirror/checkpoints/step_00000002.attempt-1/index.json"
    content = json.loads(index.read_text())
    content["files"].append({"file": name, "bytes": 4, "sha256": "0" * 64})
    index.write_text(json.dumps(content))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="which is not a file of a checkpoint: do not trust that place"):
        fetch_newest(store, tmp_path / "node", FolderGroup.of_all())
    assert set(tmp_path.rglob("*")) == before


def test_what_an_old_checkpoint_needs_is_fetched_from_beside_it_and_nothing_hostile(
    tmp_path: Path, store: Mirror
) -> None:
    """Version 0.1 kept the configuration and the tokenizer beside the checkpoints."""
    Node(tmp_path / "run", store, description={}).save(2)
    names = ["config.toml", "tokenizer/tokenizer.json", "text_encoder/config.json"]
    hostile = ["tokenizer/code.py", "tokenizer/pickle.bin", "tokenizer/deeper/config.json", "tokenizer/.json"]
    for name in names + hostile:
        store.write(name, b"content")
    node = tmp_path / "node"
    assert fetch_newest(store, node, FolderGroup.of_all())
    found = [path for path in node.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
    assert sorted(str(path.relative_to(node)) for path in found) == sorted(names)
    assert described_in(newest_whole(node)) == node


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "index"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, store: Mirror, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    Node(tmp_path / "run", store).save(2, 4)
    folder = tmp_path / "mirror/checkpoints/step_00000004.attempt-1"
    file = folder / ("index.json" if damage == "index" else "weights-00000-of-00001.safetensors")
    if damage == "missing":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + b"?" if damage == "flipped" else content[:-1])
    assert fetched(tmp_path / "node", store) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mvlm: ")]
    assert len(said) == 2 and "step_00000004.attempt-1 is damaged" in said[0] and file.name in said[0]
    for file in (tmp_path / "mirror/checkpoints/step_00000002.attempt-1").glob("weights*"):
        file.unlink()
    with pytest.raises(UserError, match=r"step_00000002.attempt-1 is damaged .*there is no older one"):
        fetch_newest(store, tmp_path / "another", FolderGroup.of_all())


def test_a_checkpoint_that_the_run_folder_has_is_not_fetched(tmp_path: Path, store: Mirror) -> None:
    node = Node(tmp_path / "run", store)
    node.save(2, 4)
    inode = (node.run / "checkpoints/step_00000004").stat().st_ino
    assert fetched(node.run, store) == 4
    assert (node.run / "checkpoints/step_00000004").stat().st_ino == inode
    (node.run / "checkpoints/latest").write_text("step_00000002")  # as a user does to go back
    assert fetch_newest(store, node.run, FolderGroup.of_all())
    assert newest_whole(node.run).name == "step_00000002"
    assert fetched(tmp_path / "node", store) == 4
    Node(tmp_path / "node", store).save(6)
    assert fetched(node.run, store) == 6


class SlowMirror(Mirror):
    """Holds up uploads of checkpoints until `released` is set."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.released = threading.Event()
        self.seen: list[str] = []
        self.at_once = self.most_at_once = 0

    def upload(self, file: Path, name: str) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.released.wait(60)
        self.seen.append(name)
        super().upload(file, name)
        self.at_once -= 1


def test_a_slow_upload_skips_to_the_newest(tmp_path: Path) -> None:
    mirror = SlowMirror(f"file://{tmp_path}/mirror")
    node = Node(tmp_path / "run", mirror, Checkpoint(keep=1))
    for step in (2, 4, 6):
        save(node.saver, node.engine, step)
    assert node.uploads.pending and not node.uploads.ready
    held = sorted(path.name for path in (node.run / "checkpoints").iterdir())
    assert held == ["latest", "step_00000002", "step_00000006"]  # what is being read is not deleted
    mirror.released.set()
    node.uploads.finish()
    assert {name.split("/")[1] for name in mirror.seen if name.startswith("checkpoints")} == {
        "step_00000002.attempt-1",
        "step_00000006.attempt-1",
    }
    assert mirror.most_at_once == 1
    assert [path.name for path in sorted((node.run / "checkpoints").iterdir())] == ["latest", "step_00000006"]
    assert mirror.history() == [MirrorPath(1, 6)]


def test_what_a_failed_upload_has_left_takes_no_room_of_the_next(
    tmp_path: Path, mount_disk: Callable[[str], Path]
) -> None:
    disk = mount_disk("200k")
    node = Node(tmp_path / "run", Mirror(f"file://{disk}/mirror"))
    node.save(2)
    with open(disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))
    os.truncate(disk / "filler", (disk / "filler").stat().st_size - 8192)
    left = disk / "mirror/checkpoints"
    for step in (4, 6):
        node.save(step)
        assert mirrored_in(disk) == {MirrorPath(1, 2), MirrorPath(1, step)}
    assert not list(left.glob("step_00000006*/index.json")) and "No space left" in node.said[-1]
    (disk / "filler").unlink()
    node.save(8)
    assert mirrored_in(disk) == {MirrorPath(1, 2), MirrorPath(1, 8)} and fetched(tmp_path / "node", node.mirror) == 8


def test_a_write_that_fails_is_tried_again(tmp_path: Path, store: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES_S", (0.01, 2.0))
    in_the_way = tmp_path / "mirror/attempts"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    timer = threading.Timer(1.0, in_the_way.unlink)
    timer.start()
    store.write("attempts/0001.json", b"{}")
    timer.join()
    assert store.read("attempts/0001.json") == b"{}"
    (tmp_path / "mirror/checkpoints").touch()
    with pytest.raises(
        UserError, match=r"mirror/checkpoints/a cannot be written \(FileExistsError: .*checkpoint.mirror"
    ):
        store.write("checkpoints/a", b"")


def test_the_mirror_keeps_what_the_run_keeps(tmp_path: Path, store: Mirror) -> None:
    Node(tmp_path / "run", store, Checkpoint(keep=2, keep_every=4)).save(2, 4, 6, 8, 10, 12, 14)
    assert store.history() == [MirrorPath(1, step) for step in (14, 12, 8, 4)]
    (tmp_path / "run/checkpoints/latest").write_text("step_00000008")
    Node(tmp_path / "run", store, Checkpoint(keep=2, keep_every=4)).save(10)  # steps 12 and 14 no longer count
    assert store.history() == [MirrorPath(2, 10), MirrorPath(1, 8), MirrorPath(1, 4)]
    assert fetched(tmp_path / "node", store) == 10
    beyond = {MirrorPath(1, 12), MirrorPath(1, 14)}
    assert mirrored_in(tmp_path) == {*store.history(), *beyond}
    Node(tmp_path / "run", store, Checkpoint(keep=2, keep_every=4)).save(14)  # the run has passed them again
    assert store.history() == [MirrorPath(3, 14), MirrorPath(2, 10), MirrorPath(1, 8), MirrorPath(1, 4)]
    assert mirrored_in(tmp_path) == set(store.history())


def mirrored_in(folder: Path) -> set[MirrorPath]:
    """All checkpoints in the mirror, whole or not."""
    found = (re.fullmatch(r"step_(\d+).attempt-(\d+)", path.name) for path in (folder / "mirror/checkpoints").iterdir())
    return {MirrorPath(int(match[2]), int(match[1])) for match in found if match}


def test_a_lost_folders_records_come_back_and_grow_on(tmp_path: Path, store: Mirror) -> None:
    """Among them the images left out, which data.tolerance counts, what a job of evaluations has measured, and the
    names by which trackers know the run."""
    run, node = tmp_path / "run", Node(tmp_path / "run", store)
    names = "metrics.jsonl", "eval.jsonl", "skipped.jsonl", "quarantine.jsonl", "trackers.json"
    for name in names:
        (run / name).write_text(f"first of {name}\n")
    node.save(2)
    shutil.rmtree(run)
    assert fetched(run, store) == 2
    node = Node(run, store)
    for name in names:
        with open(run / name, "a") as file:
            file.write("second\n")
    node.save(4)
    assert fetched(tmp_path / "other", store) == 4
    for name in names:
        assert (tmp_path / "other" / name).read_text() == f"first of {name}\nsecond\n"


def test_another_runs_checkpoints_in_the_same_mirror_are_not_deleted(tmp_path: Path, store: Mirror) -> None:
    """A user may have copied `checkpoint.mirror` from another run's TOML."""
    Node(tmp_path / "another", store).save(2, 4)
    (tmp_path / "mirror/checkpoints/step_00000003.attempt-1").mkdir()  # incomplete, perhaps still being written
    incomplete = tmp_path / "mirror/checkpoints/step_00000003.attempt-1/state.json"
    incomplete.touch()
    node = Node(tmp_path / "run", store, Checkpoint(keep=1), resumes=False)
    node.save(6, 8)
    assert mirrored_in(tmp_path) == {MirrorPath(1, 2), MirrorPath(1, 3), MirrorPath(1, 4), MirrorPath(2, 8)}
    assert incomplete.exists()


def test_attempts_are_numbered_over_all_nodes(tmp_path: Path, store: Mirror) -> None:
    nodes = [Node(tmp_path / name, store) for name in ("a", "b", "a", "c")]
    assert [node.attempt.number for node in nodes] == [1, 2, 3, 4]
    assert [node.attempt.superseded() for node in nodes] == [True, False, False, False]  # as far as the folders show
    assert [node.attempt.superseded_in_mirror() for node in nodes] == [True, True, True, False]
    assert [node.attempt.superseded() for node in nodes] == [True, True, True, False]


def test_of_two_attempts_that_claim_a_number_at_the_same_time_the_later_has_it(tmp_path: Path, store: Mirror) -> None:
    first = FencingToken(tmp_path / "a", store)
    (tmp_path / "mirror/attempts/0001.json").unlink()  # the second does not see it yet
    second = FencingToken(tmp_path / "b", store)
    assert (first.number, second.number) == (1, 1)
    assert first.superseded_in_mirror() and not second.superseded_in_mirror()


def test_a_superseded_attempt_completes_no_upload(tmp_path: Path, store: Mirror) -> None:
    old = Node(tmp_path / "a", store)
    old.save(2)
    new = Node(tmp_path / "b", store)
    new.save(4)
    (tmp_path / "a/metrics.jsonl").write_text("of the old attempt")
    old.save(6)
    assert store.history() == [MirrorPath(2, 4), MirrorPath(1, 2)]
    assert store.read("metrics.jsonl") is None
    assert old.attempt.superseded()  # so it ends at its next step
    assert "a later attempt than 1 has begun" in old.said[0]
    assert fetched(tmp_path / "node", store) == 4


def test_ranks_that_see_each_other_directly_or_through_others_form_a_group() -> None:
    assert _connected([{0, 1}, {0, 1}, {2}, {2, 3}]) == [{0, 1}, {2, 3}]
    assert _connected([{0}, {1}, {2, 0}, {3, 1}, {4, 2}]) == [{1, 3}, {0, 2, 4}]


def test_a_mirror_that_is_not_a_url_is_refused() -> None:
    with pytest.raises(UserError, match=r"checkpoint.mirror is 'runs/mine': it must be a URL"):
        load_config(TOML, ["checkpoint.mirror=runs/mine"])
    with pytest.raises(UserError, match="nonsense://runs cannot be used"):
        Mirror("nonsense://runs")
