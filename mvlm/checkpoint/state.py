"""All that a run must remember besides tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from mvlm.errors import UserError

GLOBAL: Final = "global"
BLOCKS: Final = "blocks"
SHARDS: Final = "shards"
KINDS = (GLOBAL, BLOCKS, SHARDS)


@dataclass(frozen=True)
class OrderSpec:
    """An order of samples, as every checkpoint has it in JSON."""

    kind: str  # one of KINDS
    parameters: dict[str, int] = field(default_factory=dict)  # of blocks: block, window; of shards: window
    from_epoch: int = 0  # the first epoch drawn in it

    def __str__(self) -> str:
        if self.kind == GLOBAL:
            return "a global shuffle"
        if self.kind == BLOCKS:
            return "blocks of {block} rows, {window} blocks together".format(**self.parameters)
        return "whole shards, {window} together".format(**self.parameters)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> OrderSpec:
        """Raises:
        TypeError: it is not what `to_json` gives.
        UserError: the order is of a kind that only another version knows.
        """
        spec = cls(**content)
        if spec.kind not in KINDS:
            raise UserError(f"The order {spec.kind!r} of a checkpoint is unknown to this version: update mvlm.")
        return spec

    def is_like(self, other: OrderSpec) -> bool:
        """Whether both draw an epoch in the same order."""
        return (self.kind, self.parameters) == (other.kind, other.parameters)


@dataclass(frozen=True)
class BestEvaluation:
    """The best evaluation of a run so far.

    Attributes:
        step: of its checkpoint.
        since: evaluations after it, none of them better.
    """

    metric: str
    step: int
    value: float
    since: int = 0


@dataclass(frozen=True)
class DataStream:
    """What a run draws in one order: a data set, or several in fixed shares.

    Attributes:
        data: folders or URLs, as the run names them.
        parts: the fingerprint of each.
        where: the condition that each one's rows meet.
        fingerprint: of their mixture.
        pairs: an epoch draws each row with each of its captions, and not just once.
        per_epoch: draws in an epoch.
        position: draws made when the running stage began.
        order: from that position on; empty = it has not been drawn from.
    """

    data: tuple[str, ...]
    parts: tuple[str, ...]
    where: tuple[str, ...]
    fingerprint: str
    pairs: bool
    per_epoch: int
    position: int = 0
    order: tuple[OrderSpec, ...] = ()

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> DataStream:
        order = tuple(map(OrderSpec.from_json, content["order"]))
        lists = {name: tuple(content[name]) for name in ("data", "parts", "where")}
        return cls(**(content | lists | {"order": order}))


@dataclass(frozen=True)
class StageState:
    """A stage that has begun.

    Attributes:
        number: of the stage, 0 for the first.
        step, samples: steps made and samples seen before it.
        end: the step that it ends at, as last planned.
        global_batch: samples a step.
        earlier: its previous global batches, each with the samples seen when it was changed.
        streams: numbers of the run's streams that it draws from.
        shares: draws of each in an epoch of the stage.
        begins, ends: the position of each stream when the stage began and when it ended; no ends = it is running.
    """

    number: int
    name: str
    step: int
    samples: int
    end: int
    global_batch: int
    streams: tuple[int, ...]
    shares: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...] = ()
    earlier: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> StageState:
        found = {name: tuple(content[name]) for name in ("streams", "shares", "begins", "ends")}
        return cls(**(content | found | {"earlier": tuple((end, batch) for end, batch in content.get("earlier", ()))}))

    def batch_at(self, samples: int) -> int:
        """The global batch of the step that began when `samples` had been seen."""
        return next((batch for end, batch in self.earlier if samples < end), self.global_batch)


@dataclass(frozen=True)
class TrainState:
    """Where a run stands; the same on every rank, and the same JSON in every checkpoint."""

    step: int  # of the schedule
    samples_seen: int  # position in the sample stream, skipped batches included
    seed: int
    manifest_fingerprint: str
    updates: int = 0  # the optimiser's own: `step` less the overflows of fp16
    skipped: tuple[int, ...] = ()  # stream positions at which a batch was skipped
    recent_losses: tuple[float, ...] = ()  # of the last good steps, to recognise a spike
    loss_scale: dict[str, float] | None = None  # of fp16
    frozen: tuple[str, ...] = ()  # parts that are not trained
    frozen_until: dict[str, int] = field(default_factory=dict)  # updates before which parts were last frozen
    order: tuple[OrderSpec, ...] = ()  # of the running epoch and of those after it; empty = not recorded
    best: BestEvaluation | None = None  # of the evaluations up to this step, its own included
    stages: tuple[StageState, ...] = ()  # that have begun, the running one last; empty for a run without stages
    streams: tuple[DataStream, ...] = ()  # that these have drawn from, in order of first use
    selection: str = ""  # a hash of the rows that data.where keeps; "" without it
    unevaluated: bool = False  # this step's evaluation is still owed, since held-out data could not be read

    @property
    def is_best(self) -> bool:
        """Whether its own evaluation is the best so far."""
        return self.best is not None and self.best.step == self.step

    def freezing(self, parts: tuple[str, ...]) -> TrainState:
        """The state that a stage begins with if it does not train these parts."""
        return replace(self, frozen=parts, frozen_until=self.frozen_until | dict.fromkeys(self.frozen, self.updates))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> TrainState:
        """Raises:
        TypeError, KeyError: it is not an object, or a key is missing or unknown.
        UserError: its order is of a kind that only another version knows.
        """
        if not isinstance(content, dict):
            raise TypeError(f"{content!r} is not a JSON object")
        lists = {name: tuple(content.get(name, ())) for name in ("skipped", "recent_losses", "frozen")}
        order = tuple(map(OrderSpec.from_json, content.get("order", ())))
        best = BestEvaluation(**content["best"]) if content.get("best") else None
        stages = tuple(map(StageState.from_json, content.get("stages", ())))
        streams = tuple(map(DataStream.from_json, content.get("streams", ())))
        found = {"order": order, "best": best, "stages": stages, "streams": streams}
        return cls(**(content | lists | found))
