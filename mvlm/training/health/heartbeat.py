"""Heartbeats that the ranks of a run leave in its folder, and what they reveal when it hangs."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HEARTBEATS = "heartbeat"
QUIET_AFTER = 5  # looks, one heartbeat's time apart, that find nothing new
LONGEST_PERIOD_S = 60.0
NAMED = 4  # ranks that a sentence names


def period_s(hang_minutes: float) -> float:
    """Seconds between the heartbeats of a rank, if its run is taken to hang after that long without progress."""
    return min(60 * hang_minutes / 10, LONGEST_PERIOD_S)


@dataclass(frozen=True)
class Heartbeat:
    """What one rank reports about itself."""

    attempt: int
    rank: int
    host: str
    pid: int
    step: int
    doing: str  # what its main thread last marked as begun
    marks: int  # how many marks it has made; all ranks of a run make the same
    still_s: float  # seconds since then
    stuck: bool  # for longer than allowed
    exchanging: bool  # stuck, and its main thread is in a call of torch.distributed
    ends: bool  # the ranks at fault have been named, and this one exits
    time: float

    @property
    def is_gone(self) -> bool:
        """Whether its process has ended, which can be known only on its own host."""
        is_here = self.host == socket.gethostname() and Path("/proc/self").exists()
        return is_here and not Path(f"/proc/{self.pid}").exists()

    def write(self, folder: Path) -> None:
        """Write it in place, in one call: that works on a full disk, and NFS shows it at once, unlike a renamed file.

        Raises:
            OSError: it cannot be written, or the folder has gone.
        """
        file = os.open(_path(folder, self.rank), os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.ftruncate(file, os.write(file, json.dumps(asdict(self)).encode()))
        finally:
            os.close(file)


def read(folder: Path, rank: int, attempt: int) -> Heartbeat | None:
    """A rank's heartbeat; None if there is none of this attempt, or it cannot be read at this moment."""
    try:
        heartbeat = Heartbeat(**json.loads(_path(folder, rank).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return heartbeat if heartbeat.attempt == attempt else None


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"


class Others:
    """What is known of other ranks. Live ones are recognised by new heartbeats, not by the clocks of their hosts."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self._folder = folder
        self._attempt = attempt
        self._unchanged: dict[int, int] = {}
        self.last: dict[int, Heartbeat | None] = {}

    def look(self, rank: int) -> Heartbeat | None:
        """Its last heartbeat. To be called once per heartbeat period."""
        found = read(self._folder, rank, self._attempt)
        before = self.last.get(rank)
        changed = rank not in self._unchanged or (found is not None and found != before)
        self._unchanged[rank] = 0 if changed else self._unchanged[rank] + 1
        self.last[rank] = found or before
        return self.last[rank]

    def is_quiet(self, rank: int) -> bool:
        """Whether it sends no heartbeat: it is dead, stopped, or holds the interpreter's lock."""
        return self._unchanged[rank] >= QUIET_AFTER


@dataclass(frozen=True)
class Hang:
    """Who holds a run up.

    Args:
        heartbeats: the last of every rank of this run folder; None if there was none.
        quiet: ranks that send no heartbeat.
        unseen: how many more ranks there are, on nodes with run folders of their own.
    """

    heartbeats: dict[int, Heartbeat | None]
    quiet: frozenset[int]
    unseen: int = 0

    @property
    def at_fault(self) -> list[int]:
        """Ranks without a heartbeat, and those that are stuck behind others.

        Of ranks with equally few marks, those that are not in an exchange keep the others waiting there. It is all
        ranks if none is behind, and none while those that are behind may still be at work.
        """
        awake = self._awake()
        fewest = min((beat.marks for beat in awake), default=0)
        behind = [beat for beat in awake if beat.marks == fewest]
        if not all(beat.stuck for beat in behind) or (self.quiet and len(behind) == len(awake)):
            behind = []
        behind = [beat for beat in behind if not beat.exchanging] or behind
        return sorted({*self.quiet, *(beat.rank for beat in behind)})

    def _awake(self) -> list[Heartbeat]:
        return [beat for rank, beat in self.heartbeats.items() if beat and rank not in self.quiet]

    def sentence(self) -> str:
        """Which ranks are at fault, where, what they were in, and for how long; without a full stop."""
        ranks = self.at_fault
        if self.unseen and not self.quiet and all(beat.exchanging for beat in self._awake()):
            own = self._awake()[0]
            return f"the ranks of {own.host} wait for one of the {self.unseen} on other nodes, {_doing(own)}"
        if len(ranks) == len(self.heartbeats) > 1 and not self.quiet:
            beat = self.heartbeats[ranks[0]]
            assert beat is not None  # it is not quiet
            return f"all {len(ranks)} ranks have been {_doing(beat)} and none is behind, so the fault lies between them"
        named = [self._describe(rank) for rank in ranks[:NAMED]]
        if len(ranks) > NAMED:
            named.append(f"{len(ranks) - NAMED} more ranks likewise")
        if self.quiet and (awake := self._awake()):
            ahead = max(awake, key=lambda beat: beat.marks)
            named.append(f"while others have been {_doing(ahead)}")  # how far the quiet ones got is not known
        return ", ".join(named)

    def _describe(self, rank: int) -> str:
        beat = self.heartbeats[rank]
        if beat is None:
            return f"rank {rank} has never sent a heartbeat"
        where = f"rank {rank} on {beat.host}"
        if rank not in self.quiet:
            return f"{where} has been {_doing(beat)}"
        return (
            f"{where} sends no heartbeat{_process_state(beat)} since it was in "
            f'"{beat.doing}" at step {beat.step}, {duration(time.time() - beat.time)} ago'
        )

    def record(self) -> dict[str, Any]:
        """For run/hangs.jsonl."""
        at_fault = [self.heartbeats[rank] for rank in self.at_fault]
        return {
            "ranks": self.at_fault,
            "no_sign_of_life": sorted(self.quiet),
            "heartbeats": [asdict(beat) for beat in at_fault if beat],
        }


def _doing(beat: Heartbeat) -> str:
    return f'in "{beat.doing}" at step {beat.step} for {duration(beat.still_s)}'


def _process_state(beat: Heartbeat) -> str:
    """What the kernel says about a process on this host: after the exit nobody can look."""
    if beat.host != socket.gethostname() or not Path("/proc/self").exists():
        return ""
    try:
        lines = Path(f"/proc/{beat.pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f" (process {beat.pid} is gone)"
    state = next(line.partition("(")[2].rstrip(")") for line in lines if line.startswith("State:"))
    return f" (process {beat.pid} is {state})"


def duration(seconds: float) -> str:
    return f"{max(seconds, 0.0):.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
