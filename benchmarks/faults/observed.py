"""The `mvlm` command, observed: the samples that every step was given are recorded, and chosen batches are spoilt.

    FAULTS=DIR deepspeed --module benchmarks.faults.observed train RUN.toml --deepspeed_config JSON ...

DIR/faults.json, if it exists, names positions in the sample stream:
{"nan": [position, ...], "spike": [position, ...], "absent": [[first, end], ...]}. A micro-batch that contains a
position of "nan" has a loss of NaN, one of "spike" a loss 50 times as large, on that rank only. Batches that begin in a
range of "absent" are taken out of the stream before the trainer sees them. A "memory" or "processor" is {"step",
"rank", "seed"}: the first time that this rank reaches that step, a bit flips in a weight or moment that it keeps, or in
the output of a layer in its first forward pass. Before every step each rank adds a line to DIR/stream-RANK.jsonl.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from mvlm.__main__ import run
from mvlm.batch import Batch, Losses
from mvlm.runtime import dist

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mvlm.model.maskvlm import MaskVLM
    from mvlm.training.engine import Engine

FACTORS = {"nan": float("nan"), "spike": 50.0}
FOLDER, ATTEMPT = "FAULTS", "FAULTS_ATTEMPT"
"""Environment variables with DIR, and with an attempt's identity: its run and its number."""


def observe(folder: Path) -> None:
    """Put the faults of `folder` into the model and the loader, and record the stream before each engine step."""
    from mvlm.data.loading.loader import Loader
    from mvlm.model.maskvlm import MaskVLM
    from mvlm.training.engine import Engine

    path = folder / "faults.json"
    faults = json.loads(path.read_text()) if path.exists() else {}
    factors = {position: FACTORS[kind] for kind in FACTORS for position in faults.get(kind, [])}
    flips = Flips(folder, faults)
    MaskVLM.forward = _spoilt(MaskVLM.forward, factors, flips)  # type: ignore[method-assign]
    Loader.__next__ = _thinned(Loader.__next__, faults.get("absent", []))  # type: ignore[method-assign]
    stream = folder / f"stream-{os.environ['RANK']}.jsonl"
    Engine.step = _recorded(Engine.step, stream, flips)  # type: ignore[method-assign]


class Flips:
    """Bits that flip only once, in whichever attempt: each leaves a file that says what it did."""

    def __init__(self, folder: Path, faults: dict[str, Any]) -> None:
        self._folder, self._miscomputes = folder, None
        own = [fault | {"kind": kind} for kind in ("memory", "processor") for fault in faults.get(kind, [])]
        self._left = [fault for fault in own if fault["rank"] == int(os.environ["RANK"])]

    def before(self, engine: Engine, step: int) -> None:
        """Flip the bits that are due at a step: now, or in the next forward pass."""
        for fault in self._left:
            if fault["step"] == step and not self._file(fault).exists():
                if fault["kind"] == "memory":
                    self._change(engine, fault)
                else:
                    self._miscomputes = fault

    def forward(self, model: MaskVLM, passes: Callable[[], Losses]) -> Losses:
        """Make a forward pass, in which a layer miscomputes if that is due."""
        if not (fault := self._miscomputes):
            return passes()
        self._miscomputes, draw = None, Random(fault["seed"])
        layers = [(name, layer) for name, layer in model.named_modules() if _is_leaf(layer)]
        name, layer = draw.choice(layers)

        def miscompute(_: nn.Module, __: Any, handed_on: Any) -> Any:
            first, *others = handed_on if isinstance(handed_on, tuple) else (handed_on,)
            first = first.clone()  # autograd forbids changing a custom function's output in place
            self._flip(fault, draw, name, _first(first))
            return (first, *others) if others else first

        handle = layer.register_forward_hook(miscompute)
        try:
            return passes()
        finally:
            handle.remove()

    def _change(self, engine: Engine, fault: dict[str, Any]) -> None:
        draw = Random(fault["seed"])
        own = [(name, key, part.elements) for name, parts in engine.own_parts() for key, part in parts.items()]
        name, key, elements = draw.choice([each for each in own if each[2].numel()])
        self._flip(fault, draw, f"{key} of {name}", elements.view(-1))

    def _flip(self, fault: dict[str, Any], draw: Random, name: str, tensor: Tensor) -> None:
        """Flip a bit of a float32 tensor in place, one that changes its number by a hundredth or more."""
        import torch

        if self._file(fault).exists():  # a layer may be called several times
            return
        numbers = tensor.detach().view(torch.int32)
        place, bit = draw.randrange(numbers.numel()), draw.randrange(17, 31)
        numbers[place] ^= 1 << bit
        self._file(fault).write_text(json.dumps({"what": name, "element": place, "bit": bit}))

    def _file(self, fault: dict[str, Any]) -> Path:
        return self._folder / f"{fault['kind']}-{fault['step']}.json"


def _first(handed_on: Tensor) -> Tensor:
    """The features of the first token, which is never padding."""
    return handed_on[(0,) * (handed_on.dim() - 1)]


def _is_leaf(layer: nn.Module) -> bool:
    return not list(layer.children()) and bool(list(layer.parameters()))


def _spoilt(forward: Callable[..., Losses], factors: dict[int, float], flips: Flips) -> Callable[..., Losses]:
    @functools.wraps(forward)
    def spoilt(model: MaskVLM, batch: Batch, *beside: Any) -> Losses:
        if batch.position_B.is_meta:  # only counts operations
            return forward(model, batch, *beside)
        losses = flips.forward(model, lambda: forward(model, batch, *beside))
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


def _recorded(update: Callable[..., Losses], path: Path, flips: Flips) -> Callable[..., Losses]:
    @functools.wraps(update)
    def recorded(engine: Engine, micro_batches: list[Batch], lr_factor: float, step: int, *beside: Any) -> Losses:
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
        flips.before(engine, step + 1)
        return update(engine, micro_batches, lr_factor, step, *beside)

    return recorded


if __name__ == "__main__":
    observe(Path(os.environ[FOLDER]))
    run()
