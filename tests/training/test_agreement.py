"""What ranks tell each other each step arrives on time, the same on all, and before anything is saved."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest
import torch

from mvlm.checkpoint.layout import find_checkpoint
from mvlm.runtime import dist
from mvlm.runtime.background import rounds
from mvlm.runtime.gathered import Gathered, Ring
from mvlm.training.agreement import Agreement, StepFlags
from mvlm.training.checkpoint.save import Saver
from mvlm.training.engine import Engine
from mvlm.training.health.anomaly import AnomalyDetector
from mvlm.training.stream import TrainingStream
from tests.ranks import run_ranks
from tests.training.conftest import TrainHere

READINGS = [(0.1, 1e16, 0.0), (0.7, 1.0, 1.0), (3.3, -1e16, 0.0)]  # their sum depends on the order


def sockets() -> int:
    return sum(os.readlink(link).startswith("socket:") for link in Path("/proc/self/fd").iterdir() if link.is_symlink())


def agree(folder: Path, large: int) -> None:
    """What each rank runs."""
    dist.LARGE, before = large, sockets()
    dist.init()
    rank, world = dist.rank(), dist.world()
    (folder / f"{rank}.sockets").write_text(str(sockets() - before))
    while len(list(folder.glob("*.sockets"))) < world:  # no rank sends before all have counted
        time.sleep(0.01)
    found = []
    for turn in range(3):
        begun = Agreement(StepFlags(signalled=rank == 1, faults=rank + turn, ready=1), READINGS[rank])
        dist.all_reduce(torch.ones(2))  # another exchange meanwhile does no harm
        flags, reading = begun.wait()
        found.append([*flags, *(number.hex() for number in reading)])
    own = [torch.full((2, 3), rank + 0.5), torch.full((2, 2), rank), torch.full((2,), rank + 0.5)]
    for at_once in (world, 2, 1):
        gathered = Gathered(own, at_once)
        for _ in range(2):  # again, as the softmax does
            for first, (start, blocks) in zip(range(0, world, at_once), gathered, strict=True):
                ranks = range(first, min(first + at_once, world))
                assert start == (2 * (rank - first) if rank in ranks else -2)
                for one, whole in zip(own, blocks, strict=True):
                    assert whole.dtype == one.dtype
                    assert torch.equal(whole, torch.cat([one - rank + each for each in ranks]))
    ring = Ring(own)
    for _ in range(2):
        for hop, (start, blocks) in zip(range(world), ring, strict=True):
            assert start == (-2 if hop else 0)
            for one, handed_on in zip(own, blocks, strict=True):
                assert handed_on.dtype == one.dtype and torch.equal(handed_on, one - rank + (rank - hop) % world)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.close()


@pytest.mark.parametrize("connects", ["all with all", "as needed"])
def test_ranks_agree_to_the_last_bit(connects: str, tmp_path: Path) -> None:
    large = dist.LARGE if connects == "all with all" else 2
    world = len(READINGS)
    done = run_ranks(agree, tmp_path, large, ranks=world)
    assert done.returncode == 0, done.stderr
    opened = [int((tmp_path / f"{rank}.sockets").read_text()) for rank in range(1, world)]
    mesh = 1 + 1 + world - 1  # to the store, to listen, to the others
    assert all(count == mesh if connects == "all with all" else count < mesh for count in opened)
    first, *others = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world))
    assert all(other == first for other in others)
    for turn, (*flags, loss, _, corrupted) in enumerate(first):
        assert StepFlags(*flags) == StepFlags(signalled=1, faults=3 + 3 * turn, ready=3)
        assert float.fromhex(loss) == pytest.approx(4.1 / 3)
        assert float.fromhex(corrupted) == pytest.approx(1 / 3)


def test_messages_grow_with_the_logarithm_of_the_ranks() -> None:
    assert [rounds(world) for world in (1, 2, 3, 8, 512, 4096, 4100)] == [0, 1, 3, 3, 9, 12, 14]


def test_losses_are_read_a_step_later_and_judged_before_they_are_saved(
    tmp_path: Path, train_here: TrainHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the eighth step, after which a checkpoint is due, the loss is NaN the first time."""
    events: list[str] = []
    judged: set[int] = set()
    step, judge, start = Engine.step, AnomalyDetector.judge, Saver.start
    begin, wait = Agreement.__init__, Agreement.wait

    def stepping(self, micro_batches, factor, before, tally=None):
        losses = step(self, micro_batches, factor, before, tally)
        events.append("step")
        broken = before == 7 and events.count("step") == 8
        return {name: loss * math.nan if broken else loss for name, loss in losses.items()}

    def judging(self, *reading):
        (number, anomaly) = (self._readings[0].step, judge(self, *reading))
        judged.discard(number) if anomaly else judged.add(number)
        return anomaly

    def starting(self, state):
        assert judged >= set(range(1, state.step + 1))
        events.append(f"saved {state.step}")
        start(self, state)

    # However slowly the machine reads.
    monkeypatch.setattr(TrainingStream, "is_here", lambda stream: stream.wait(lambda: False))
    monkeypatch.setattr(Engine, "step", stepping)
    monkeypatch.setattr(AnomalyDetector, "judge", judging)
    monkeypatch.setattr(Saver, "start", starting)
    monkeypatch.setattr(Agreement, "__init__", lambda *of: (events.append("begun"), begin(*of))[1])
    monkeypatch.setattr(Agreement, "wait", lambda of: (events.append("read"), wait(of))[1])
    assert train_here(tmp_path / "run", "train.steps=12", "checkpoint.every=4") == 0
    assert find_checkpoint(tmp_path / "run").name == "step_00000012"
    assert [event for event in events if "saved" in event] == ["saved 0", "saved 4", "saved 8", "saved 12"]
    assert events[1:9] == ["begun", "read"] + ["begun", "step", "read"] * 2
    assert events.count("step") == 12 + 4  # steps 5 to 8 are repeated
