"""The `mvlm` command, observed: which samples every step was given is written down, and chosen batches are spoilt.

    FAULTS=DIR deepspeed --module benchmarks.faults.observed train RUN.toml --deepspeed_config JSON ...

DIR/faults.json, where there is one, names positions in the sample stream:
{"nan": [position, ...], "spike": [position, ...], "absent": [[first, end], ...]}. The loss of the micro-batch that
holds one of "nan" is NaN, of "spike" 50 times as large, on one rank alone. Batches that begin in a range of "absent"
are taken out of the stream before the trainer sees them. Before every step each rank adds a line to
DIR/stream-RANK.jsonl.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvlm.__main__ import main
from mvlm.batch import Batch, Losses
from mvlm.runtime import dist

FACTORS = {"nan": float("nan"), "spike": 50.0}
FOLDER, ATTEMPT = "FAULTS", "FAULTS_ATTEMPT"
"""The environment's names for DIR, and for what tells an attempt from all others: its run and its number."""


def observe(folder: Path) -> None:
    """Put the faults of `folder` into the model and the loader, and a record of the stream before the engine."""
    from mvlm.data.loading.loader import Loader
    from mvlm.model.maskvlm import MaskVLM
    from mvlm.training.engine import Engine

    path = folder / "faults.json"
    faults = json.loads(path.read_text()) if path.exists() else {}
    factors = {position: FACTORS[kind] for kind in FACTORS for position in faults.get(kind, [])}
    MaskVLM.forward = _spoilt(MaskVLM.forward, factors)  # type: ignore[method-assign]
    Loader.__next__ = _thinned(Loader.__next__, faults.get("absent", []))  # type: ignore[method-assign]
    Engine.step = _recorded(Engine.step, folder / f"stream-{os.environ['RANK']}.jsonl")  # type: ignore[method-assign]


def _spoilt(forward: Callable[..., Losses], factors: dict[int, float]) -> Callable[..., Losses]:
    @functools.wraps(forward)
    def spoilt(model: object, batch: Batch, *beside: Any) -> Losses:
        losses = forward(model, batch, *beside)
        if batch.position_B.is_meta:  # its operations are counted
            return losses
        for position in factors.keys() & set(batch.position_B.tolist()):
            losses = {name: loss * factors[position] for name, loss in losses.items()}
        return losses

    return spoilt


def _thinned(following: Callable[..., list[Batch]], absent: list[tuple[int, int]]) -> Callable[..., list[Batch]]:
    @functools.wraps(following)
    def thinned(loader: object) -> list[Batch]:
        while True:
            batches = following(loader)
            if not any(first <= int(batches[0].position_B[0]) < end for first, end in absent):
                return batches

    return thinned


def _recorded(update: Callable[..., Losses], path: Path) -> Callable[..., Losses]:
    @functools.wraps(update)
    def recorded(engine: object, micro_batches: list[Batch], lr_factor: float, step: int, *beside: Any) -> Losses:
        line = {
            "time": time.time(),
            "attempt": int(os.environ[ATTEMPT].rpartition(" ")[2]),
            "step": step + 1,
            "world": dist.world(),
            "positions": [position for batch in micro_batches for position in batch.position_B.tolist()],
            "rows": [row for batch in micro_batches for row in batch.image_id_B.tolist()],
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return update(engine, micro_batches, lr_factor, step, *beside)

    return recorded


if __name__ == "__main__":
    observe(Path(os.environ[FOLDER]))
    sys.exit(main())
