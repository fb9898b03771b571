"""All that a run must remember beside tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mvlm.data.sampler import OrderSpec


@dataclass(frozen=True)
class TrainState:
    """Where a run stands; the same on every rank, and the same JSON in every checkpoint."""

    step: int  # of the schedule
    samples_seen: int  # position in the sample stream, skipped batches included
    seed: int
    manifest_fingerprint: str
    updates: int = 0  # the optimiser's own: `step` less the overflows of fp16
    skipped: tuple[int, ...] = ()  # stream positions at which a batch was skipped
    recent_losses: tuple[float, ...] = ()  # of the last good steps, by which a spike is known
    loss_scale: dict[str, float] | None = None  # of fp16
    frozen: tuple[str, ...] = ()  # parts that are not trained
    order: tuple[OrderSpec, ...] = ()  # of the running epoch and of those after it; none = not recorded

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> TrainState:
        """Raises:
        TypeError: it is no object, or a key is missing or unknown.
        UserError: its order is of a kind that only another version knows.
        """
        if not isinstance(content, dict):
            raise TypeError(f"{content!r} is no JSON object")
        lists = {name: tuple(content.get(name, ())) for name in ("skipped", "recent_losses", "frozen")}
        order = tuple(map(OrderSpec.from_json, content.get("order", ())))
        return cls(**(content | lists | {"order": order}))
