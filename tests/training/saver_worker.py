"""One of two ranks that save, of which one fails and one reads damage; each writes what it saw to rank-R.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from mvlm.checkpoint.cut import TensorPart
from mvlm.checkpoint.fencing import FencingToken
from mvlm.checkpoint.integrity import find_damage
from mvlm.checkpoint.newest import newest_whole
from mvlm.checkpoint.state import TrainState
from mvlm.config.schema import Checkpoint
from mvlm.errors import UserError
from mvlm.runtime import dist
from mvlm.training.checkpoint.save import Saver


class Trained:
    """Stands in for an engine: what a checkpoint takes from it, with the step as the value of every weight."""

    disk = None

    def __init__(self) -> None:
        self.step = 0

    def whole_tensors(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        for number, name in enumerate(("first", "second", "third.bias")):
            weight = torch.full((3, number + 1), float(self.step))
            moments = {"exp_avg": weight / 2, "exp_avg_sq": weight / 4} if self.step else {}
            yield name, {"weight": weight, **moments}

    def own_parts(self) -> Iterator[tuple[str, dict[str, TensorPart]]]:
        for name, whole in list(self.whole_tensors())[dist.rank() :: dist.world()]:
            yield name, {key: TensorPart(tensor.flatten(), 0, tuple(tensor.shape)) for key, tensor in whole.items()}


def save(saver: Saver, engine: Trained, step: int) -> None:
    engine.step = step
    saver.start(TrainState(step, step * 16, 0, "shards", updates=step))
    engine.step = -1  # as if training continued while the files are written
    saver.finish()


def seen_by_rank(folder: Path) -> dict[str, object]:
    run, engine = folder / "run", Trained()
    saver = Saver(engine, run, Checkpoint(keep=3), FencingToken(run))
    for step in (2, 4):
        save(saver, engine, step)
    seen: dict[str, object] = {"latest": newest_whole(run).name}

    blocked = run / "checkpoints/step_00000006.partial-1/weights-00001-of-00002.safetensors"
    if dist.rank() == 0:
        blocked.mkdir(parents=True)  # so the second rank cannot create its file
    dist.barrier()
    try:
        save(saver, engine, 6)
    except UserError as error:
        seen["failed"] = str(error)
    seen["after failure"] = sorted(path.name for path in (run / "checkpoints").iterdir())
    dist.barrier()

    save(saver, engine, 6)
    seen["whole"] = find_damage(run / "checkpoints/step_00000006")
    dist.barrier()
    if dist.rank() == 0:  # damage that only the second rank reads, and one of two files of moments gone
        (run / "checkpoints/step_00000006/moments-00001-of-00002.safetensors").unlink()
        file = run / "checkpoints/step_00000004/weights-00001-of-00002.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    dist.barrier()
    seen["fallback"] = newest_whole(run).name
    seen["left"] = sorted(path.name for path in (run / "checkpoints").iterdir())
    dist.barrier()
    if dist.rank() == 0:
        run.rename(folder / "moved")
    dist.barrier()
    try:
        save(saver, engine, 8)
    except UserError as error:
        seen["moved"] = str(error)
    seen["left in its place"] = run.exists()
    return seen


def as_rank(folder: Path) -> None:
    dist.init()
    (folder / f"rank-{dist.rank()}.json").write_text(json.dumps(seen_by_rank(folder)))
    dist.barrier()
    dist.close()
