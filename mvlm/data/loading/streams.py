"""What a stage of a run draws, given the positions of its streams when it begins.

A run without stages draws one stream. If the stages of a run draw different data, each data set is its own stream, in
its own order, whose position continues from stage to stage: no row comes again before all others of its data set have
come. A stage of several takes turns among them, as evenly as possible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mvlm.checkpoint.state import DataStream, OrderSpec, StageState, TrainState
from mvlm.config.schema import Data
from mvlm.data.loading.sampler import Sampler, make_sampler, resumed
from mvlm.data.shards.mixture import Mixture, draw_counts, training_mixture
from mvlm.errors import UserError

PERIOD = 1 << 20
"""The most draws before the turns among data sets repeat: their shares are exact to a millionth."""


class TurnsSampler:
    """Draws from several data sets in turn, each in its own order from its current position.

    Args:
        samplers: of each, by its own positions.
        shares: draws of each in an epoch.
        begins: the position of each when this sampler's is 0.
        firsts: what to add to the numbers of each.
    """

    def __init__(
        self, samplers: Sequence[Sampler], shares: Sequence[int], begins: Sequence[int], firsts: Sequence[int]
    ):
        self._parts = list(zip(samplers, begins, firsts, strict=True))
        self._shares, self.per_epoch = shares, sum(shares)

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 positions [n] -> numbers, and how often each was drawn before in the whole run, both int64 [n]."""
        before, after = taken(self._shares, positions), taken(self._shares, positions + 1)
        numbers, occurrences = np.empty_like(positions), np.empty_like(positions)
        for which, (sampler, begin, first) in enumerate(self._parts):
            mine = after[which] > before[which]
            own = begin + before[which][mine]
            numbers[mine] = sampler(own)[0] + first
            occurrences[mine] = own // sampler.per_epoch
        return numbers, occurrences


def taken(shares: Sequence[int], positions: np.ndarray) -> np.ndarray:
    """How many of the first `positions` draws, int64 [n], are from each data set: int64 [data sets, n].

    Each data set takes its share, rounded down, of the draws left by those before it: so each further draw is from
    exactly one of them, and shares are always kept to within one draw per data set.
    """
    total = sum(shares)
    if total > PERIOD:
        shares = [max(1, round(share * PERIOD / total)) if share else 0 for share in shares]
    rest = sum(shares)
    periods, left = np.divmod(positions, rest)
    found = np.empty((len(shares), len(positions)), dtype=np.int64)
    for which, share in enumerate(shares):
        own = left * share // rest if rest else np.zeros_like(left)
        found[which] = periods * share + own
        left, rest = left - own, rest - share
    return found


class ContinuedSampler:
    """Continues a stream that earlier stages have drawn from, with occurrences that none of its earlier draws had.

    Args:
        shift: what to add to the run's positions to get the stream's.
        most: the most draws of a row in an epoch.
    """

    def __init__(self, sampler: Sampler, shift: int, most: int = 0):
        self._sampler, self._shift, self._most = sampler, shift, most
        self.per_epoch = sampler.per_epoch

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = positions + self._shift
        numbers, occurrences = self._sampler(own)
        return numbers, occurrences + own // self.per_epoch * self._most


def takes_turns(stage: StageState, streams: Sequence[DataStream]) -> bool:
    """Whether a stage draws each of its data sets in its own order, rather than all in one.

    This includes a single data set whose weight makes the stage's epoch longer or shorter than its own.
    """
    return stage.shares != (streams[stage.streams[0]].per_epoch,)


@dataclass(frozen=True)
class Drawing:
    """How a stage draws."""

    stages: tuple[StageState, ...]  # of the run, up to the one that draws
    streams: tuple[DataStream, ...]  # of the run
    mixture: Mixture
    seed: int

    @classmethod
    def of(cls, state: TrainState, mixture: Mixture, seed: int) -> Drawing | None:
        """Of the running stage; None for a run without stages."""
        return cls(state.stages, state.streams, mixture, seed) if state.stages else None

    @property
    def stage(self) -> StageState:
        """The one that draws."""
        return self.stages[-1]

    @property
    def takes_turns(self) -> bool:
        """See the function of this name."""
        return takes_turns(self.stage, self.streams)

    @property
    def shift(self) -> int:
        """What to add to the run's positions so that the stage's epochs begin at multiples of their draws."""
        return (0 if self.takes_turns else self.stage.begins[0]) - self.stage.samples

    @property
    def is_continued(self) -> bool:
        """Whether the run so far differs from one without stages, which would draw one stream."""
        takes_turns_ever = any(takes_turns(stage, self.streams) for stage in self.stages)
        return takes_turns_ever or self.stage.streams != (0,) or self.shift != 0

    def sampler(self, orders: Sequence[OrderSpec]) -> Sampler:
        """The sampler for the run's positions.

        Args:
            orders: of the one stream, if the stage takes no turns.
        """
        stage, mixture = self.stage, self.mixture
        if not self.takes_turns:
            sampler = make_sampler(mixture, self.seed + stage.streams[0], orders)
            most = math.ceil(max(mixture.weights))
            return ContinuedSampler(sampler, self.shift, most) if self.is_continued else sampler
        samplers = [
            make_sampler(alone, self.seed + number, self.streams[number].order)
            for number, alone in zip(stage.streams, each_alone(mixture), strict=True)
        ]
        sizes = mixture.numbers.sizes
        turns = TurnsSampler(samplers, stage.shares, stage.begins, [sum(sizes[:n]) for n in range(len(sizes))])
        return ContinuedSampler(turns, self.shift)


def each_alone(mixture: Mixture) -> list[Mixture]:
    """The data sets of a mixture, each as its own mixture."""
    pairs = mixture.numbers.pairs
    conditions = zip(mixture.corpora, mixture.conditions, strict=True)
    return [
        Mixture([c.folder], cache=mixture.cache, task=mixture.task, pairs=pairs, where=[where], trains=True)
        for c, where in conditions
    ]


def begin_stage(
    state: TrainState, stage: StageState, mixture: Mixture, wanted: OrderSpec, together: bool
) -> TrainState:
    """The state in which a stage begins, from that in which the one before it ends.

    Args:
        stage: its number, name, end and global batch; the rest is filled in.
        wanted: the order of its samples, beginning with the first epoch of each stream that has not begun.
        together: its data sets are drawn as one, in one order.

    Raises:
        UserError: a data set that was drawn together with others would now be drawn without them.
    """
    state = end_stage(state)
    streams, numbers, orders = list(state.streams), [], []
    parts = _parts(mixture, together)
    for part in parts:
        number = _number_of(part, streams)
        if number == len(streams):
            streams.append(stream_of(part))
        known = streams[number]
        order, _ = resumed(known.order, wanted, known.position, known.per_epoch)
        streams[number] = with_order(known, order)
        numbers.append(number)
        orders.append(order)
    is_one = len(parts) == 1 and parts[0] is mixture
    begun = replace(
        stage,
        step=state.step,
        samples=state.samples_seen,
        streams=tuple(numbers),
        shares=(mixture.per_epoch,) if is_one else tuple(draw_counts(mixture.numbers.sizes, mixture.weights)),
        begins=tuple(streams[number].position for number in numbers),
    )
    return replace(
        state,
        stages=(*state.stages, begun),
        streams=tuple(streams),
        order=orders[0],
        manifest_fingerprint=mixture.fingerprint,
        selection=mixture.selection,
        recent_losses=(),
    )


def first_stage(state: TrainState, stage: StageState, mixture: Mixture) -> TrainState:
    """The same state as that of a run with stages, the first and only one so far being what it has been drawing."""
    running = replace(stage, streams=(0,), shares=(mixture.per_epoch,), begins=(0,))
    return replace(state, stages=(running,), streams=(with_order(stream_of(mixture), state.order),))


def end_stage(state: TrainState) -> TrainState:
    """The state with the running stage, if any, ended here, and its streams' positions moved on."""
    if not state.stages:
        return state
    *before, stage = state.stages
    ends = positions_of(state)
    streams = list(remembered(state))
    for number, end in zip(stage.streams, ends, strict=True):
        streams[number] = replace(streams[number], position=end)
    return replace(state, stages=(*before, replace(stage, ends=ends)), streams=tuple(streams))


def remembered(state: TrainState) -> tuple[DataStream, ...]:
    """The streams with the running stage's current order, which the state keeps apart from them."""
    streams, stage = list(state.streams), state.stages[-1]
    if not takes_turns(stage, streams):
        streams[stage.streams[0]] = with_order(streams[stage.streams[0]], state.order)
    return tuple(streams)


def reordered(state: TrainState, wanted: OrderSpec) -> tuple[DataStream, ...]:
    """The streams when a run resumes within a stage: if that takes turns, each in the wanted order from its next epoch
    on; otherwise the one order is settled as the state's own."""
    streams, stage = list(remembered(state)), state.stages[-1]
    if takes_turns(stage, streams):
        for number, position in zip(stage.streams, positions_of(state), strict=True):
            known = streams[number]
            streams[number] = with_order(known, resumed(known.order, wanted, position, known.per_epoch)[0])
    return tuple(streams)


def with_order(stream: DataStream, order: Sequence[OrderSpec]) -> DataStream:
    """A stream with these orders from their epochs on, whatever it was to have from there."""
    before = (each for each in stream.order if not order or each.from_epoch < order[0].from_epoch)
    return replace(stream, order=(*before, *order))


def positions_of(state: TrainState) -> tuple[int, ...]:
    """The current position of each stream of the running stage."""
    stage = state.stages[-1]
    drawn = taken(stage.shares, np.array([state.samples_seen - stage.samples], dtype=np.int64))[:, 0]
    return tuple(begin + int(count) for begin, count in zip(stage.begins, drawn, strict=True))


def stream_of(mixture: Mixture) -> DataStream:
    """A mixture as a stream of which nothing has been drawn yet."""
    data = tuple(str(corpus.folder) for corpus in mixture.corpora)
    parts = tuple(corpus.fingerprint for corpus in mixture.corpora)
    where = tuple(mixture.conditions)
    return DataStream(data, parts, where, mixture.fingerprint, mixture.numbers.pairs, mixture.per_epoch)


def _parts(mixture: Mixture, together: bool) -> list[Mixture]:
    """The parts that are each drawn in their own order; raises `UserError` if two of them are the same."""
    if together or (len(mixture.corpora) == 1 and set(mixture.weights) == {1.0}):
        return [mixture]
    mixture.require_distinct()
    return each_alone(mixture)


def check_drawable(state: TrainState, mixture: Mixture, before: Data, together: bool) -> None:
    """Raise `UserError` if a stage that follows a state could not draw this mixture.

    Args:
        before: what the run has drawn, if the state is that of a run without stages.
    """
    known = state.streams if state.stages else (stream_of(training_mixture(before, mixture.task)),)
    for part in _parts(mixture, together):
        _number_of(part, known)


def _number_of(mixture: Mixture, streams: Sequence[DataStream]) -> int:
    """The number of a mixture's stream; the next free one if the mixture has not been drawn."""
    wanted = stream_of(mixture)
    for number, known in enumerate(streams):
        if (known.fingerprint, known.pairs) == (wanted.fingerprint, wanted.pairs):
            return number
    for known in streams:
        if known.pairs == wanted.pairs and (shared := set(known.parts) & set(wanted.parts)):
            folder = wanted.data[wanted.parts.index(shared.pop())]
            raise UserError(
                f"The run has drawn {folder} as a part of {', '.join(known.data)} with weights or numbers of its own, "
                f"and a stage would draw it as a part of {', '.join(wanted.data)}, so that some rows could come again "
                "too early: give that stage the same data.train and data.weights, or other shards; a run whose TOML "
                "names all its stages from the start may change them."
            )
    return len(streams)
