"""Checkpoints written while training continues: what they hold, and what is left if the process dies at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mvlm.batch import Batch
from mvlm.checkpoint import newest
from mvlm.checkpoint.fencing import FencingToken
from mvlm.checkpoint.integrity import find_damage
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.checkpoint.newest import make_latest, newest_whole
from mvlm.checkpoint.state import TrainState
from mvlm.checkpoint.tensors import open_tensors, write_tensors
from mvlm.config.schema import Checkpoint
from mvlm.errors import UserError
from mvlm.training.checkpoint.resume import restore
from mvlm.training.checkpoint.save import Saver
from mvlm.training.engine import Engine
from tests.ranks import run_ranks
from tests.training.parity_worker import built, configuration, engine_of, steps_of
from tests.training.saved_tensors import whole_tensors
from tests.training.saver_worker import Trained, as_rank, save


def engine_and_batches(scenes: Path, stage: int) -> tuple[Engine, list[list[Batch]]]:
    config = configuration(str(scenes), 16)
    model, loader = built(config, 0, 1)
    return engine_of(model, config, {"zero_optimization": {"stage": stage}}, 1), steps_of(loader)


def state_of(engine: Engine, step: int) -> TrainState:
    return TrainState(step, step * 16, 0, "shards", engine.updates, (32,), (1.5, 0.1), engine.loss_scale_state())


def snapshot(engine: Engine) -> dict[str, Tensor]:
    """Its tensors, by their names in a checkpoint."""
    tensors = {}
    for name, whole in whole_tensors(engine):
        for key, tensor in whole.items():
            tensors[name if key == "weight" else f"{key}/{name}"] = tensor.clone()
    return tensors


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[title], expected[title]) for title in expected)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_live_engine_is_restored_to_an_earlier_step(scenes: Path, tmp_path: Path, one_rank: None, stage: int) -> None:
    """Tensors, update counter and later losses are those of the checkpoint's step, with and without moments."""
    engine, batches = engine_and_batches(scenes, stage)
    saver = Saver(engine, tmp_path, Checkpoint(), FencingToken(tmp_path))
    losses, kept = [], {}
    for step in range(4):
        if step in (0, 2):
            kept[step] = snapshot(engine)
            saver.start(state_of(engine, step))
        losses.append(engine.step(batches[step], 0.5, step))
    saver.finish()
    for start in (2, 0):
        state = restore(engine, tmp_path / f"checkpoints/step_{start:08d}")
        assert state == TrainState(start, start * 16, 0, "shards", start, (32,), (1.5, 0.1), None)
        assert engine.updates == start
        assert equal({title: tensor for title, tensor in snapshot(engine).items() if title in kept[start]}, kept[start])
        for step in range(start, 4):
            assert engine.step(batches[step], 0.5, step) == losses[step], step


def test_a_checkpoint_is_plain_safetensors(scenes: Path, tmp_path: Path, one_rank: None) -> None:
    """A process reads what the engine holds without torch, DeepSpeed or mvlm."""
    engine, batches = engine_and_batches(scenes, 1)
    engine.step(batches[0], 0.5, 0)
    saver = Saver(engine, tmp_path, Checkpoint(), FencingToken(tmp_path))
    saver.start(state_of(engine, 1))
    saver.finish()
    code = (
        "import sys; from safetensors.numpy import load_file\n"
        "print(*(f'{t!r} {list(x.shape)} {x.tobytes().hex()}' for f in sys.argv[1:] "
        "for t, x in load_file(f).items()), sep='\\n')\n"
        "assert not {'deepspeed', 'mvlm', 'torch'} & set(sys.modules)"
    )
    files = [str(path) for path in (tmp_path / "checkpoints/step_00000001").glob("*.safetensors")]
    read = subprocess.run([sys.executable, "-c", code, *files], cwd=tmp_path, capture_output=True, text=True)
    assert read.returncode == 0, read.stderr
    expected = [f"{t!r} {list(x.shape)} {x.numpy().tobytes().hex()}" for t, x in snapshot(engine).items()]
    assert sorted(read.stdout.splitlines()) == sorted(expected)
    names = sorted(path.suffix for path in (tmp_path / "checkpoints/step_00000001").iterdir())
    assert names == [".json", ".json", ".safetensors", ".safetensors"]  # nothing that has to be unpickled


def test_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        'é/quote"': torch.tensor([float("inf"), -0.0, 1e-45]),
        "odd": torch.randn(7, 1, 3),
    }
    for count in range(1, 5):  # headers of several lengths
        some = dict(list(tensors.items())[:count])
        entry = write_tensors(tmp_path / "some.safetensors", some)
        read = load_file(tmp_path / "some.safetensors")
        assert equal(read, some) and str(read) == str({title: some[title] for title in read})
        data = (tmp_path / "some.safetensors").read_bytes()
        assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert int.from_bytes(data[:8], "little") % 8 == 0  # tensors are aligned


def test_training_continues_while_files_are_written(scenes: Path, tmp_path: Path, one_rank: None) -> None:
    """A pipe in place of the file holds up the writer, which then writes the tensors of the step it started at.

    A pipe cannot be synced, so this checkpoint fails in the end and the one before stays the latest.
    """
    engine, batches = engine_and_batches(scenes, 0)
    engine.step(batches[0], 0.5, 0)
    saver = Saver(engine, tmp_path, Checkpoint(), FencingToken(tmp_path))
    saver.start(state_of(engine, 1))
    assert saver.pending
    saver.finish()
    assert not saver.pending and saver.seconds > 0

    partial = tmp_path / "checkpoints/step_00000002.partial-1"
    partial.mkdir()
    pipe = partial / "weights-00000-of-00001.safetensors"
    os.mkfifo(pipe)
    engine.step(batches[1], 0.5, 1)
    expected = {title: tensor for title, tensor in snapshot(engine).items() if "exp_avg" not in title}
    saver.start(state_of(engine, 2))
    for step in (2, 3):
        engine.step(batches[step], 0.5, step)
    assert saver.pending and not saver.written
    (tmp_path / "read.safetensors").write_bytes(pipe.read_bytes())
    assert equal(load_file(tmp_path / "read.safetensors"), expected)
    wait_for(lambda: saver.written)
    assert saver.pending
    with pytest.raises(UserError, match=r"step_00000002 could not be written .*rank 0.*free some room"):
        saver.publish()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_00000001"]
    assert find_checkpoint(tmp_path).name == "step_00000001"


def names(run: Path) -> list[str]:
    return sorted(path.name.removeprefix("step_000000") for path in (run / "checkpoints").iterdir())


def steps_saved(run: Path, config: Checkpoint, *steps: int) -> list[str]:
    """Save these steps in another attempt of the run; the names that are left."""
    engine = Trained()
    saver = Saver(engine, run, config, FencingToken(run, resumes=True))
    for step in steps:
        save(saver, engine, step)
    return names(run)


def test_the_newest_and_every_nth_are_kept(tmp_path: Path) -> None:
    assert steps_saved(tmp_path, Checkpoint(keep=2), 2, 4, 6) == ["04", "06", "latest"]
    assert steps_saved(tmp_path, Checkpoint(keep=2, keep_every=4), *range(8, 17, 2)) == [
        "04", "08", "12", "14", "16", "latest",
    ]  # fmt: skip


def test_checkpoints_from_before_a_run_went_back_are_deleted_once_it_has_passed_them(tmp_path: Path) -> None:
    """A checkpoint of a repeated step is replaced."""
    steps_saved(tmp_path, Checkpoint(keep=4, keep_every=8), 2, 4, 6, 8)
    make_latest(tmp_path / "checkpoints/step_00000004")
    assert find_checkpoint(tmp_path).name == "step_00000004"
    old = (tmp_path / "checkpoints/step_00000006").stat().st_ino
    assert steps_saved(tmp_path, Checkpoint(keep=3, keep_every=8), 6) == ["02", "04", "06", "08", "latest"]
    assert (tmp_path / "checkpoints/step_00000006").stat().st_ino != old
    assert find_checkpoint(tmp_path).name == "step_00000006"
    assert steps_saved(tmp_path, Checkpoint(keep=3, keep_every=8), 7) == ["04", "06", "07", "08", "latest"]
    assert steps_saved(tmp_path, Checkpoint(keep=3, keep_every=8), 9) == ["06", "07", "09", "latest"]


def test_leftovers_of_earlier_attempts_are_deleted(tmp_path: Path) -> None:
    for name in ("step_00000004.partial-1", "step_00000004.deleted-1", "step_00000006.partial-3", "notes.partial-mine"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    FencingToken(tmp_path)
    Saver(Trained(), tmp_path, Checkpoint(), FencingToken(tmp_path))
    assert names(tmp_path) == ["06.partial-3", "notes.partial-mine"]


def test_a_saver_discards_a_pending_checkpoint_when_an_error_ends_it(tmp_path: Path) -> None:
    steps_saved(tmp_path, Checkpoint(), 2)
    with pytest.raises(KeyError), Saver(Trained(), tmp_path, Checkpoint(), FencingToken(tmp_path)) as saver:
        saver.start(TrainState(4, 64, 0, "shards"))
        raise KeyError
    assert names(tmp_path) == ["02", "latest"]


def changes_a_folder(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
    return event.startswith(("os.", "shutil.")) and event not in ("os.listdir", "os.scandir")


def killed_at(moment: int, folder: Path, action: Callable[[], Any]) -> bool:
    """Whether a child process was killed just before its `moment`-th change in the folder, or else finished.

    The interpreter reports to an audit hook whenever it is about to open, create, rename or delete a file.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if changes_a_folder(event, arguments) and any(str(folder) in str(word) for word in arguments):
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), os.waitstatus_to_exitcode(status)
    return status == signal.SIGKILL


def weight_of(checkpoint: Path) -> float:
    with open_tensors(checkpoint, "weights") as files:
        return files["first"].tensor()[0, 0].item()


def killed_at_each_moment(before: Path, action: Callable[[Path], object]) -> Iterator[Path]:
    """Copies of a run folder in which `action` was killed, one change later in each; in the last one it finished."""
    killed, moment = True, 0
    while killed:
        moment += 1
        run = before.with_name(f"moment-{moment}")
        shutil.copytree(before, run)
        killed = killed_at(moment, run, partial(action, run))
        yield run


def save_step_4(run: Path) -> None:
    steps_saved(run, Checkpoint(keep=1), 4)


@pytest.mark.parametrize(
    ("before", "latest"), [((1, 2), 2), ((2, 4), 2), ((2, 4), 4)], ids=["next step", "gone back", "same step again"]
)
def test_a_kill_at_any_moment_of_saving_leaves_a_whole_checkpoint(
    tmp_path: Path, before: tuple[int, int], latest: int
) -> None:
    """Step 4 is saved, in one case over an earlier checkpoint of that step."""
    steps_saved(tmp_path / "before", Checkpoint(keep=2), *before)
    make_latest(tmp_path / f"before/checkpoints/step_0000000{latest}")
    found = []
    for run in killed_at_each_moment(tmp_path / "before", save_step_4):
        checkpoint = find_checkpoint(run)
        assert find_damage(checkpoint) is None
        found.append(int(weight_of(checkpoint)))
        assert checkpoint.name == f"step_0000000{found[-1]}"
        assert steps_saved(run, Checkpoint(keep=1), 6) == ["06", "latest"]
    assert len(found) > 15
    assert found[0] == latest and found[-1] == 4
    assert set(found) == {2, 4}


def test_a_kill_at_any_moment_of_saving_the_only_checkpoint_again_leaves_it_or_the_new_one(tmp_path: Path) -> None:
    steps_saved(tmp_path / "before", Checkpoint(keep=1), 4)
    moments = 0
    for run in killed_at_each_moment(tmp_path / "before", save_step_4):
        moments += 1
        checkpoint = newest_whole(run)
        assert checkpoint.name == "step_00000004" and find_damage(checkpoint) is None
        assert steps_saved(run, Checkpoint(keep=1), 6) == ["06", "latest"]
    assert moments > 15


def test_after_a_kill_at_any_moment_of_falling_back_the_next_attempt_falls_back_as_far(tmp_path: Path) -> None:
    steps_saved(tmp_path / "before", Checkpoint(keep=3), 2, 4, 6)
    for step in (4, 6):
        (tmp_path / f"before/checkpoints/step_0000000{step}/weights-00000-of-00001.safetensors").write_bytes(b"")
    moments = 0
    for run in killed_at_each_moment(tmp_path / "before", newest_whole):
        moments += 1
        assert newest_whole(run).name == "step_00000002"
        assert find_checkpoint(run).name == "step_00000002"
    assert moments > 5
    assert names(run) == ["02", "04.damaged", "06.damaged", "latest"]


def test_two_ranks_agree_on_failures_damage_and_where_to_resume(tmp_path: Path) -> None:
    """Only one of them meets the failure, and only one reads the damage."""
    done = run_ranks(as_rank, tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["latest"] == "step_00000004"
    assert "step_00000006 could not be written (rank 1: " in first["failed"]
    assert first["after failure"] == ["latest", "step_00000002", "step_00000004"]
    assert first["whole"] is None
    assert first["fallback"] == "step_00000002"
    assert "run has been removed, moved or replaced" in first["moved"] and first["left in its place"] is False
    assert first["left"] == ["latest", "step_00000002", "step_00000004.damaged", "step_00000006.damaged"]
    said = [line for line in done.stderr.splitlines() if line.startswith("mvlm: ")]  # only the first rank speaks
    assert len(said) == 1 and "moments-00001-of-00002" in said[0] and "resumes from step_00000002" in said[0]
    tensors = {}
    for path in sorted((tmp_path / "moved/checkpoints/step_00000002").glob("weights-*")):
        part = load_file(path)
        assert part.keys() == ({"first", "third.bias"} if "-00000-of" in path.name else {"second"})
        tensors |= part
    engine = Trained()
    engine.step = 2
    assert equal(tensors, {name: whole["weight"] for name, whole in engine.whole_tensors()})


def test_a_checkpoint_that_a_running_attempt_deletes_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another attempt saves, and deletes the latest checkpoint, after this one has looked it up and before it reads it.

    It does so twice.
    """
    run, steps = tmp_path / "run", [4, 6]
    steps_saved(run, Checkpoint(keep=1), 2)

    def find_damage_after_a_save(checkpoint: Path, hashes: bool) -> str | None:
        if steps:
            steps_saved(run, Checkpoint(keep=1), steps.pop(0))
        return find_damage(checkpoint, hashes)

    monkeypatch.setattr(newest, "find_damage", find_damage_after_a_save)
    assert newest_whole(run).name == "step_00000006"
    assert names(run) == ["06", "latest"]
