"""Reports on the weights that a model starts from: for each part, and for the whole model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

Shape = tuple[int, ...]


def shown(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a number"


@dataclass
class LoadReport:
    """What became of the tensors of one part of the model.

    Attributes:
        part: "image encoder", "text encoder", or "model".
        source: whose tensors, and where from.
        matched: hold what the source has under that name.
        resized: the same, fitted: shape there and here.
        fresh: newly initialised.
        left: in the source but not used.
        others: how many more of the source belong to no encoder.
    """

    part: str
    source: str
    matched: list[str] = field(default_factory=list)
    resized: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    others: int = 0

    def __str__(self) -> str:
        total = len(self.matched) + len(self.resized) + len(self.fresh)
        parts = [f"{len(self.matched) + len(self.resized)} of {total} tensors from {self.source}"]
        for name, (there, here) in self.resized.items():
            parts.append(f"{name} resized from {shown(there)} to {shown(here)}")
        if self.fresh:
            parts.append(f"{len(self.fresh)} new ({', '.join(self.fresh[:3])}{', …' * (len(self.fresh) > 3)})")
        if unused := len(self.left) + self.others:
            parts.append(f"{unused} of the checkpoint not used")
        return f"{self.part.capitalize()}: {'; '.join(parts)}."


@dataclass(frozen=True)
class InitReport:
    """What a run's model started from.

    Attributes:
        loaded: one for each part whose weights were loaded.
        fresh: parameters of all other parts, with random values.
    """

    loaded: tuple[LoadReport, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        parts = sorted({name.split(".")[0] for name in self.fresh})
        new = [f"New: {len(self.fresh)} tensors of {', '.join(parts)}."] if self.fresh else []
        return "\n".join([*map(str, self.loaded), *new])

    def to_json(self) -> str:
        return json.dumps({"parts": [asdict(report) for report in self.loaded], "fresh": self.fresh}, indent=1)
