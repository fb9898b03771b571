"""Runs with mirrored checkpoints: they continue when a folder, a node or all nodes are lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mvlm.checkpoint.layout import find_checkpoint
from mvlm.checkpoint.mirror import Mirror, MirrorPath
from mvlm.checkpoint.peers import memory_of
from mvlm.errors import UserError
from mvlm.runtime import storage
from tests.conftest import ROOT, TINY, signals_kept
from tests.ranks import free_port
from tests.training.conftest import TOML, StopAfter, TrainHere, losses_by_step, read_metrics, train_in

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
