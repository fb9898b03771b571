"""Runs with mirrored checkpoints: what another node finds if a folder is gone, late, incomplete or hostile."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from mvlm.checkpoint.description import described_in
from mvlm.checkpoint.fencing import FencingToken
from mvlm.checkpoint.fetch import fetch_newest
from mvlm.checkpoint.folder_group import FolderGroup, _connected
from mvlm.checkpoint.integrity import find_damage
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.checkpoint.mirror import Mirror, MirrorPath
from mvlm.checkpoint.newest import newest_whole
from mvlm.checkpoint.peers import memory_of
from mvlm.checkpoint.upload import Uploads
from mvlm.config.load import load_config
from mvlm.config.schema import Checkpoint
from mvlm.errors import StorageLost, UserError, cannot_write
from mvlm.runtime import storage
from mvlm.training.checkpoint.save import Saver
from mvlm.training.health.heartbeat import QUIET_AFTER, Heartbeat
from mvlm.training.health.watchdog import _Inquiry
from tests.conftest import ROOT, TINY, signals_kept
from tests.ranks import Copy, free_port, mvlm
from tests.training.conftest import TOML, StopAfter, TrainHere, losses_by_step, read_metrics, train_in
from tests.training.mirror_worker import DESCRIPTION
from tests.training.saver_worker import Trained, save
from tests.training.test_saver import killed_at, weight_of

EVERY = "checkpoint.every=2"


@pytest.fixture(scope="module")
def undisturbed(scenes: Path, tmp_path_factory: pytest.TempPathFactory, one_rank: None) -> dict[int, tuple[float, ...]]:
    """The losses of a run without a mirror."""
    place = tmp_path_factory.mktemp("undisturbed")
    with signals_kept():
        assert train_in(place, scenes, place / "run", EVERY) == 0
    return losses_by_step(place / "run")


def words(scenes: Path, run: Path | str, *overrides: str) -> list[str]:
    return [*TINY, f"data.train={scenes}/train", f"run.dir={run}", "train.steps=6", EVERY, *overrides]


@pytest.mark.parametrize(
    "protocol", ["s3", *(pytest.param(name, marks=pytest.mark.campaign) for name in ("file", "memory"))]
)
def test_a_run_continues_when_its_folder_is_lost(
    protocol: str,
    scenes: Path,
    tmp_path: Path,
    train_here: TrainHere,
    undisturbed: dict[int, tuple[float, ...]],
    request: pytest.FixtureRequest,
) -> None:
    if protocol == "s3":
        request.getfixturevalue("s3")
    url = {"file": f"file://{tmp_path}/mirror", "memory": "memory://runs/mine", "s3": "s3://bucket/runs/mine"}[protocol]
    run, mirrored = tmp_path / "run", f"checkpoint.mirror={url}"
    assert train_here(run, EVERY, mirrored, stop=StopAfter(run, 3)) == 75
    stopped = int(find_checkpoint(run).name.removeprefix("step_"))
    assert 3 <= stopped < 6
    assert Mirror(url).history()[0] == MirrorPath(1, stopped)
    shutil.rmtree(run)

    assert train_here(run, EVERY, mirrored) == 0
    assert losses_by_step(run) == undisturbed
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 5, 6]  # no step is repeated
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "latest",
        "step_00000004",
        "step_00000006",
    ]
    names = list(Mirror(url).sizes(""))
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {
        "latest",
        f"step_00000004.attempt-{1 if stopped == 4 else 2}",
        "step_00000006.attempt-2",
    }
    assert {"attempts/0002.json", "config.toml", "run.json", "deepspeed.json"} < set(names)
    whole = {f"checkpoints/step_00000006.attempt-2/{name}" for name in ("config.toml", "tokenizer/tokenizer.json")}
    assert whole < set(names)
    assert Mirror(url).read("checkpoints/latest") == b"step_00000006.attempt-2"


def test_training_continues_if_a_mirror_cannot_be_written_and_fills_it_later(
    tmp_path: Path, train_here: TrainHere, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "PAUSES_S", (0.01,))
    run, store = tmp_path / "run", tmp_path / "mirror"
    mirrored = f"checkpoint.mirror=file://{store}"
    store.mkdir()
    (store / "checkpoints").write_text("a file in place of the folder")
    with pytest.raises(UserError, match=rf"{store} lacks step_00000006 .*the same command again uploads it"):
        train_here(run, EVERY, mirrored)
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert find_checkpoint(run).name == "step_00000006"
    said = capfd.readouterr().err
    assert said.count("step_00000006 is not in the mirror, and training continues") == 1
    (store / "checkpoints").unlink()
    before = read_metrics(run)
    assert train_here(run, EVERY, mirrored) == 0
    assert read_metrics(run) == before
    assert Mirror(f"file://{store}").history() == [MirrorPath(2, 6)]
    assert train_here(run, EVERY, mirrored) == 0  # it is there already
    assert Mirror(f"file://{store}").history() == [MirrorPath(2, 6)]


def test_a_damaged_local_checkpoint_is_fetched_again_from_the_mirror(
    tmp_path: Path, train_here: TrainHere, capfd: pytest.CaptureFixture[str]
) -> None:
    run, mirrored = tmp_path / "run", f"checkpoint.mirror=file://{tmp_path}/mirror"
    assert train_here(run, EVERY, mirrored) == 0
    file = next((run / "checkpoints/step_00000006").glob("weights-*"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert train_here(run, EVERY, mirrored) == 0
    assert "step_00000006.attempt-1 was fetched" in capfd.readouterr().err
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 5, 6]


def test_a_mirror_that_is_not_a_url_is_refused() -> None:
    with pytest.raises(UserError, match=r"checkpoint.mirror is 'runs/mine': it must be a URL"):
        load_config(TOML, ["checkpoint.mirror=runs/mine"])
    with pytest.raises(UserError, match="nonsense://runs cannot be used"):
        Mirror("nonsense://runs")


# The tests below train no model: the values in a checkpoint are its step.


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
    """Among them the images left out, which data.tolerance counts, and what a job of evaluations has measured."""
    run, node = tmp_path / "run", Node(tmp_path / "run", store)
    names = "metrics.jsonl", "eval.jsonl", "skipped.jsonl", "quarantine.jsonl"
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


def start_on_two_nodes(tmp_path: Path, *command: str) -> list[subprocess.Popen[str]]:
    """Start a command on two ranks with working directories of their own."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    env |= {"MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ranks = []
    for rank in range(2):
        (tmp_path / f"node-{rank}").mkdir(exist_ok=True)
        ranks.append(
            subprocess.Popen(
                [sys.executable, *command], cwd=tmp_path / f"node-{rank}", env=env | {"RANK": str(rank)}, **pipes
            )
        )
    return ranks


@pytest.mark.campaign
def test_ranks_that_see_different_run_folders_need_a_mirror(tmp_path: Path) -> None:
    """With one, each node keeps its own part of a checkpoint, and all parts when it needs them."""
    ranks = start_on_two_nodes(tmp_path, "-m", "tests.training.mirror_worker", f"file://{tmp_path}/mirror")
    said = [rank.communicate(timeout=400)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    both = [f"{kind}-0000{rank}-of-00002.safetensors" for kind in ("moments", "weights") for rank in range(2)]
    host = os.uname().nodename
    for rank in range(2):
        seen = json.loads((tmp_path / f"node-{rank}/seen.json").read_text())
        refused = f"The run folder run of rank 0 on {host} is not the one that is seen on {host} (rank 1): set run.dir"
        assert seen["without a mirror"].startswith(refused) and "checkpoint.mirror" in seen["without a mirror"]
        assert seen["ranks"] == [rank]
        assert seen["written"] == [name for name in both if f"-0000{rank}-" in name]
        assert seen["completed"] == both
        assert seen["goes back to"] == "step_00000002"
        assert seen["after the loss of a node"] == ["step_00000004", both]
        assert "step_00000004 is whole on one node" in seen["with another mirror"]
        assert seen["latest"] is False
        assert not list((tmp_path / f"node-{rank}/run").glob(".seen-*"))


@pytest.mark.campaign
def test_two_nodes_without_a_shared_disk_continue_after_both_are_lost(
    scenes: Path, tmp_path: Path, undisturbed: dict[int, tuple[float, ...]]
) -> None:
    mirrored = f"checkpoint.mirror=file://{tmp_path}/mirror"
    command = ["-m", "mvlm", "train", TOML, "--deepspeed_config", str(ROOT / "ds_configs/cpu.json")]
    command += words(scenes, "runs/mine", mirrored)
    ranks = start_on_two_nodes(tmp_path, *command)
    metrics = tmp_path / "node-0/runs/mine/metrics.jsonl"
    deadline = time.monotonic() + 400
    while not metrics.exists() or metrics.read_text().count("\n") < 2:
        assert time.monotonic() < deadline and ranks[0].poll() is None, ranks[0].communicate()[0]
        time.sleep(0.005)
    ranks[1].send_signal(signal.SIGUSR1)
    said = [rank.communicate(timeout=400)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75, 75], said
    assert json.loads((tmp_path / "node-1/runs/mine/tokenizer/tokenizer.json").read_text())
    for rank in range(2):
        shutil.rmtree(tmp_path / f"node-{rank}")
    ranks = start_on_two_nodes(tmp_path, *command)
    said = [rank.communicate(timeout=400)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "was fetched into runs/mine" in said[0] and "Resuming step_" in said[0]
    found = losses_by_step(tmp_path / "node-0/runs/mine")
    assert list(found) == [1, 2, 3, 4, 5, 6]
    for step, values in found.items():
        assert values == pytest.approx(undisturbed[step], rel=1e-4), step  # of one rank


@pytest.mark.campaign
def test_two_nodes_continue_after_one_is_lost_with_its_upload(
    scenes: Path, tmp_path: Path, undisturbed: dict[int, tuple[float, ...]]
) -> None:
    """The newest checkpoint is not in the mirror and comes from the other node's memory."""
    command = ["-m", "mvlm", "train", TOML, "--deepspeed_config", str(ROOT / "ds_configs/cpu.json")]
    command += words(scenes, "runs/mine", f"checkpoint.mirror=file://{tmp_path}/mirror", "checkpoint.peers=1")
    ranks = start_on_two_nodes(tmp_path, *command)
    metrics = tmp_path / "node-0/runs/mine/metrics.jsonl"
    deadline = time.monotonic() + 400
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert time.monotonic() < deadline and ranks[0].poll() is None, ranks[0].communicate()[0]
        time.sleep(0.005)
    ranks[1].send_signal(signal.SIGUSR1)
    said = [rank.communicate(timeout=400)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75, 75], said
    memories = [memory_of(tmp_path / f"node-{rank}/runs/mine") for rank in range(2)]
    (newest,) = {folder.name for memory in memories for folder in memory.iterdir()}
    assert newest == (tmp_path / "node-0/runs/mine/checkpoints/latest").read_text()
    shutil.rmtree(tmp_path / "node-1")
    shutil.rmtree(memories[1])
    (uploaded,) = (tmp_path / "mirror/checkpoints").glob(f"{newest}.attempt-*")
    shutil.rmtree(uploaded)
    ranks = start_on_two_nodes(tmp_path, *command)
    said = [rank.communicate(timeout=400)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert f"{newest} was made whole from what the nodes hold" in said[0] and f"Resuming {newest}" in said[0]
    found = losses_by_step(tmp_path / "node-0/runs/mine")
    assert list(found) == [1, 2, 3, 4, 5, 6]
    for step, values in found.items():
        assert values == pytest.approx(undisturbed[step], rel=1e-4), step
    assert not any(memory.exists() for memory in memories)


BEAT = Heartbeat(1, 1, "here", 1, 7, "agreeing", 20, 300.0, stuck=True, exchanging=True, ends=False, time=0.0)


def test_ranks_of_other_nodes_are_not_taken_for_dead(tmp_path: Path) -> None:
    """Rank 1 of three cannot see the heartbeats of the others, whose run folders are their own."""
    inquiry = _Inquiry(tmp_path, 1, 1, ranks=(1,), unseen=2)
    for look in range(3 * QUIET_AFTER):
        assert not inquiry.others_end()
        hang = inquiry.verdict(replace(BEAT, time=float(look)))
    assert hang and hang.quiet == frozenset() and hang.at_fault == [1]
    assert (
        hang.sentence() == 'the ranks of here wait for one of the 2 on other nodes, in "agreeing" at step 7 for 5 min'
    )
    hang = inquiry.verdict(replace(BEAT, exchanging=False, doing="loading"))
    assert hang and hang.sentence() == 'rank 1 on here has been in "loading" at step 7 for 5 min'


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
    training = Copy(mvlm, *command, *words(scenes, run, "train.steps=100000", "checkpoint.every=20"))
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
