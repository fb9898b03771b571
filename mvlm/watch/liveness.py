"""Whether the ranks of a run are alive, by the heartbeats in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mvlm.training.health.heartbeat import HEARTBEATS, QUIET_AFTER, Hang, Heartbeat, period_s, read

GONE_AFTER = 2
"""Heartbeats' times after which a missing process counts. A container may share its host's name and not its processes,
but it keeps giving signs of life."""


@dataclass(frozen=True)
class Liveness:
    """Of one attempt.

    Args:
        beats: by rank, the last heartbeat.
        age_s: by rank, how long ago it gave the last sign of life.
        quiet: ranks that have given none for QUIET_AFTER times the heartbeats' own distance, or GONE_AFTER times where
            their process is not to be found on this host.
        ahead_s: how far heartbeats are ahead of this machine's clock, where no newer ones have shown that ranks live.
    """

    beats: dict[int, Heartbeat]
    age_s: dict[int, float]
    quiet: frozenset[int]
    ahead_s: float

    @property
    def all_quiet(self) -> bool:
        return len(self.quiet) == len(self.beats)

    @property
    def hang(self) -> str | None:
        """Who holds the run up, as a sentence, when some rank is stuck or sends no heartbeat and others do."""
        hang = Hang(dict(self.beats), self.quiet)
        troubled = self.quiet or any(beat.stuck for beat in self.beats.values())
        return hang.sentence() if troubled and not self.all_quiet and hang.at_fault else None


class HeartbeatReader:
    """Knows life by new heartbeats: the clocks of other hosts are trusted for the first look alone.

    Args:
        clock: the time now.
    """

    def __init__(self, run: Path, clock: Callable[[], float]) -> None:
        self._folder, self._clock, self._monotonic = run / HEARTBEATS, clock, time.monotonic
        self._heard: dict[int, tuple[Heartbeat, float]] = {}  # and when, by this machine's clock
        self._ahead: dict[int, float] = {}  # seconds of those that have been heard once

    def read(self, attempt: int, hang_minutes: float) -> Liveness:
        """What the ranks of this attempt tell now."""
        now, period = self._monotonic(), period_s(hang_minutes)
        for path in sorted(self._folder.glob("rank-*.json")):
            rank = path.stem.removeprefix("rank-")
            beat = read(self._folder, int(rank), attempt) if rank.isdecimal() else None
            before = self._heard.get(beat.rank) if beat else None
            if beat and (before is None or before[0].attempt != attempt):
                age = self._clock() - beat.time
                self._heard[beat.rank] = beat, now - (abs(age) if beat.is_gone else max(0.0, age))
                self._ahead[beat.rank] = -age
            elif beat and before and before[0] != beat:
                self._heard[beat.rank] = beat, now
                self._ahead[beat.rank] = 0.0
        heard = {rank: found for rank, found in self._heard.items() if found[0].attempt == attempt}
        beats = {rank: beat for rank, (beat, _) in sorted(heard.items())}
        ages = {rank: now - heard[rank][1] for rank in beats}
        quiet = frozenset(
            rank for rank, beat in beats.items() if ages[rank] > (GONE_AFTER if beat.is_gone else QUIET_AFTER) * period
        )
        ahead = max((self._ahead[rank] for rank in beats), default=0.0)
        return Liveness(beats, ages, quiet, ahead if ahead > period else 0.0)
