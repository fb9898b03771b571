"""Whether the ranks of a run are alive, judged by the heartbeats in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mvlm.training.health.heartbeat import HEARTBEATS, QUIET_AFTER, Hang, Heartbeat, period_s, read

GONE_AFTER = 2
"""Heartbeat periods after which a process missing on this host counts as gone. In a container with the host's name,
processes cannot be seen, but their heartbeats keep coming."""


@dataclass(frozen=True)
class Liveness:
    """Signs of life in one attempt.

    Args:
        beats: by rank, the last heartbeat.
        age_s: by rank, how long ago it last gave a sign of life.
        quiet: ranks that have given none for QUIET_AFTER heartbeat periods, or for GONE_AFTER if their process cannot
            be found on this host.
        ahead_s: how far heartbeats are ahead of this machine's clock, until new ones show that ranks are alive.
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
        """Who holds the run up, as a sentence, if some ranks are stuck or silent and others are not."""
        hang = Hang(dict(self.beats), self.quiet)
        troubled = self.quiet or any(beat.stuck for beat in self.beats.values())
        return hang.sentence() if troubled and not self.all_quiet and hang.at_fault else None


class HeartbeatReader:
    """Takes new heartbeats as signs of life: other hosts' clocks are trusted only at the first look.

    Args:
        clock: returns the current time.
    """

    def __init__(self, run: Path, clock: Callable[[], float]) -> None:
        self._folder, self._clock, self._monotonic = run / HEARTBEATS, clock, time.monotonic
        self._heard: dict[int, tuple[Heartbeat, float]] = {}  # and when it was read, by this machine's clock
        self._ahead: dict[int, float] = {}  # seconds, of ranks heard only once

    def read(self, attempt: int, hang_minutes: float) -> Liveness:
        """The ranks' current signs of life in this attempt."""
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
