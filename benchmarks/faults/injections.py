"""The faults: each kind waits for its moment in a running attempt, does its harm, and says what must come of it.

A kind is a function (attempt, draw) -> Hit, or None if the attempt was over before the moment came.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.faults.moments import a_rank, launchers, moment, partial_checkpoints, whole_checkpoints
from benchmarks.faults.runs import BATCH, Attempt, send
from mvlm.config.schema import Data
from mvlm.config.schema import Run as Seed
from mvlm.data.loading.order import MixtureSampler
from mvlm.data.shards.corpus import Corpus
from mvlm.errors import ExitCode

KILLED = (-signal.SIGKILL, 256 - signal.SIGKILL)  # the launcher itself; a rank, as the launcher reports it
LOST_A_RANK = (256 - signal.SIGKILL, ExitCode.REQUEUE)  # of the killed rank, or of the one that misses it
AHEAD = 6  # steps from now whose images no rank has prepared
LATER = "[Aa] later attempt"
SAVE_SECONDS = 0.08
"""How far into a save a kill may fall, at most; about as long as a save takes."""


@dataclass
class Hit:
    """What was done to an attempt and what must come of it."""

    what: dict[str, Any]
    codes: tuple[int, ...] = ()  # exit codes that the launcher may have; if empty, the attempt goes on
    keeps: bool = False  # no step may be repeated
    says: str = ""  # a pattern that its output must match
    next_says: str = ""  # a pattern that the next attempt's output must match
    harms_latest: bool = False  # the latest checkpoint is damaged until the next attempt has looked at it
    mend: Callable[[], object] | None = None  # what a person would do before starting again
    successor: Attempt | None = None  # an attempt that is running already, so that none need be started
    at: float = field(default_factory=time.time)


def kill_rank(attempt: Attempt, draw: Random) -> Hit | None:
    when = moment(attempt, draw, starting=True)
    struck = a_rank(attempt, draw)
    if when is None or struck is None:
        return None
    rank, pid = struck
    send(pid, signal.SIGKILL)
    return Hit(when | {"rank": rank}, codes=LOST_A_RANK)


def kill_all(attempt: Attempt, draw: Random) -> Hit | None:
    when = moment(attempt, draw, starting=True)
    if when is None:
        return None
    os.killpg(attempt.process.pid, signal.SIGKILL)
    return Hit(when, codes=KILLED)


def kill_launcher(attempt: Attempt, draw: Random) -> Hit | None:
    """Kill only `deepspeed`, only the process between it and the ranks, or both."""
    when = moment(attempt, draw)
    if when is None:
        return None
    found = launchers(attempt)
    which = draw.choice([found[:1], found[1:], found])
    for pid in which:
        send(pid, signal.SIGKILL)
    names = [("deepspeed", "deepspeed.launcher.launch")[found.index(pid)] for pid in which]
    # If the process that it has started is killed, DeepSpeed's launcher exits with 0.
    return Hit(
        when | {"processes": names}, codes=(-signal.SIGKILL, 0), keeps=True, says="because the launcher has died"
    )


def term_rank(attempt: Attempt, draw: Random) -> Hit | None:
    return _signal_rank(attempt, draw, signal.SIGTERM)


def usr1_rank(attempt: Attempt, draw: Random) -> Hit | None:
    return _signal_rank(attempt, draw, signal.SIGUSR1)


def term_launcher(attempt: Attempt, draw: Random) -> Hit | None:
    return _signal_launcher(attempt, draw, signal.SIGTERM)


def usr1_launcher(attempt: Attempt, draw: Random) -> Hit | None:
    return _signal_launcher(attempt, draw, signal.SIGUSR1)


def pause_rank(attempt: Attempt, draw: Random) -> Hit | None:
    """Stop a rank for less time than the watchdog allows: nothing comes of it."""
    when = moment(attempt, draw)
    struck = a_rank(attempt, draw)
    if when is None or struck is None:
        return None
    (rank, pid), seconds = struck, round(draw.uniform(0.2, 2.0), 2)
    send(pid, signal.SIGSTOP)
    time.sleep(seconds)
    send(pid, signal.SIGCONT)
    return Hit(when | {"rank": rank, "seconds": seconds})


def freeze_rank(attempt: Attempt, draw: Random) -> Hit | None:
    """Stop a rank for good: another rank's watchdog must name it."""
    when = moment(attempt, draw)
    struck = a_rank(attempt, draw)
    if when is None or struck is None:
        return None
    rank, pid = struck
    send(pid, signal.SIGSTOP)
    return Hit(when | {"rank": rank}, codes=(ExitCode.REQUEUE,), says=rf"\brank {rank}\b")


def kill_in_save(attempt: Attempt, draw: Random) -> Hit | None:
    """Kill a rank or all at a random moment after the folder of a checkpoint appears."""
    when = moment(attempt, draw)
    if when is None:
        return None
    ranks = attempt.ranks()
    victim = draw.choice(["all", *(f"rank {rank}" for rank in sorted(ranks))])
    if not attempt.comes(lambda: partial_checkpoints(attempt)):
        return None
    time.sleep(draw.uniform(0, SAVE_SECONDS))
    if victim == "all":
        os.killpg(attempt.process.pid, signal.SIGKILL)
    else:
        send(ranks[int(victim[-1])], signal.SIGKILL)
    what = {"step": attempt.run.step(), "victim": victim, "partial left": bool(partial_checkpoints(attempt))}
    return Hit(what, codes=KILLED if victim == "all" else LOST_A_RANK)


def damage_checkpoint(attempt: Attempt, draw: Random) -> Hit | None:
    """Kill all; then flip a bit of the latest checkpoint, or truncate one of its files."""
    if not attempt.comes(lambda: whole_checkpoints(attempt) >= 2 and not partial_checkpoints(attempt)):
        return None
    when = moment(attempt, draw)
    if when is None:
        return None
    os.killpg(attempt.process.pid, signal.SIGKILL)
    attempt.end()
    name = attempt.run.latest()
    if name is None or whole_checkpoints(attempt) < 2:
        raise AssertionError(f"Two checkpoints were whole before the kill; now latest is {name}.")
    path = draw.choice(sorted(each for each in (attempt.run.checkpoints / name).rglob("*") if each.is_file()))
    content = bytearray(path.read_bytes())
    at = draw.randrange(len(content))
    harm = draw.choice(["cut", "flip"])
    if harm == "cut":
        del content[at:]
    else:
        content[at] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    what = {"file": re.sub(r"\d+-of-\d+", "N", path.name), "harm": harm, "byte": at, "checkpoint": name}
    # A flipped space or length in the index may change nothing; then nothing need be said, and the losses are the test.
    heard = "" if harm == "flip" and path.name == "index.json" else rf"{name}.*damaged|damaged.*{name}"
    return Hit(when | what, codes=KILLED, next_says=heard, harms_latest=True)


def fill_disk(attempt: Attempt, draw: Random) -> Hit | None:
    """Leave less room than a checkpoint needs; the run must be on its own small disk."""
    when = moment(attempt, draw)
    if when is None:
        return None
    filler = attempt.run.run.parent / "filler"
    room = shutil.disk_usage(filler.parent).free
    left = draw.randrange(0, 600_000)
    try:
        filler.write_bytes(b"\0" * max(0, room - left))
    except OSError:  # a checkpoint was written meanwhile, so the disk is full to the last byte
        left = 0
    return Hit(when | {"bytes left": left}, codes=(ExitCode.MISTAKE,), says="[Ff]ree some room", mend=filler.unlink)


def limit_files(attempt: Attempt, draw: Random) -> Hit | None:
    """Limit one rank's files to less than its checkpoints need."""
    when = moment(attempt, draw)
    struck = a_rank(attempt, draw)
    if when is None or struck is None:
        return None
    (rank, pid), limit = struck, draw.randrange(100_000, 200_000)
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit))
    return Hit(when | {"rank": rank, "bytes": limit}, codes=(ExitCode.MISTAKE,), says="[Ff]ree some room")


def spoil_image(attempt: Attempt, draw: Random) -> Hit | None:
    """Overwrite an image that is still to be read in its shard, and restore it when the run has failed on it."""
    when = moment(attempt, draw)
    if when is None or when["step"] + AHEAD >= attempt.run.steps:
        return None
    corpus = Corpus(attempt.run.shards)
    draws = MixtureSampler([len(corpus)], [1.0], Seed().seed, Data().shuffle_block, Data().shuffle_window)
    position = draw.randrange((when["step"] + AHEAD) * BATCH, attempt.run.steps * BATCH)
    row = int(draws(np.array([position]))[0][0])
    content = corpus.row(row)
    where = corpus.where(row)
    path, image = Path(where.rpartition(" row ")[0]), bytes(content.image)
    at = path.read_bytes().index(image)
    first = draw.randrange(0, len(image) - 32)  # the rest is the end of a PNG, without pixels
    _overwrite(path, at + first, bytes(byte ^ 0xFF for byte in image[first : first + 8]))
    says = rf"{re.escape(where)} \(key '{re.escape(content.key)}'\)"
    return Hit(
        when | {"row": row, "byte": first, "of": len(image)},
        codes=(ExitCode.MISTAKE,),
        says=says,
        mend=lambda: _overwrite(path, at, image),
    )


def another_layout(attempt: Attempt, draw: Random) -> Hit | None:
    """Kill all or stop a rank, and resume on another number of ranks or ZeRO stage."""
    hit = draw.choice([kill_all, term_rank])(attempt, draw)
    if hit is None:
        return None
    layouts = [(ranks, stage) for ranks in (1, 2) for stage in range(4)]
    now = attempt.run.layout
    ranks, stage = draw.choice([layout for layout in layouts if layout != (now.ranks, now.stage)])
    hit.what |= {"from": f"{now.ranks} ranks ZeRO {now.stage}", "to": f"{ranks} ranks ZeRO {stage}"}
    hit.mend = lambda: attempt.run.lay_out(ranks, stage)
    return hit


def start_twice(attempt: Attempt, draw: Random) -> Hit | None:
    """Give the command again while it runs, as does a scheduler that takes a slow node for a dead one.

    Since starting takes longer than training here, the second follows the first closely.
    """
    seconds = round(draw.uniform(0, 4), 2)
    if not attempt.comes(lambda: time.time() - attempt.began > seconds) or attempt.run.step() == attempt.run.steps:
        return None
    second = attempt.run.start()
    what = {"step": attempt.run.step(), "seconds": seconds}
    return Hit(what, codes=(ExitCode.MISTAKE,), says=LATER, successor=second)


KINDS: dict[str, Callable[[Attempt, Random], Hit | None]] = {
    kind.__name__: kind
    for kind in (
        kill_rank,
        kill_all,
        kill_launcher,
        kill_in_save,
        term_rank,
        usr1_rank,
        term_launcher,
        usr1_launcher,
        pause_rank,
        freeze_rank,
        damage_checkpoint,
        fill_disk,
        limit_files,
        spoil_image,
        another_layout,
        start_twice,
    )
}
POISONS = ("nan", "spike")
"""They are in the stream from the start; see observed.py."""
FLIPS = {"memory": "train.checksums=true", "processor": "train.audit=1"}
"""Bits that flip at a step drawn beforehand, and the setting with which a run notices them; see observed.py."""
ALL = (*KINDS, *POISONS, *FLIPS)


def _signal_rank(attempt: Attempt, draw: Random, number: int) -> Hit | None:
    when = moment(attempt, draw)
    struck = a_rank(attempt, draw)
    if when is None or struck is None:
        return None
    rank, pid = struck
    send(pid, number)
    return Hit(when | {"rank": rank}, codes=(ExitCode.REQUEUE,), keeps=True, says="Stopped by a signal")


def _signal_launcher(attempt: Attempt, draw: Random, number: int) -> Hit | None:
    """Signal `deepspeed`, which dies of it at once and leaves all others behind."""
    when = moment(attempt, draw)
    if when is None:
        return None
    send(attempt.process.pid, number)
    return Hit(when, codes=(-number,), keeps=True, says="because the launcher has died")


def _overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)
