"""The attempts at a run on Ray, kept by one actor beside the driver: who takes part, who has ended, what that means.

Ray Train starts and restarts the workers, and each worker one rank. What Ray does not know is kept here: the number of
the attempt, which exit codes are worth another attempt, and that all ranks are to save and end.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvlm.errors import ExitCode
from mvlm.runtime.wording import counted

from ..attempt import FINAL, JobAttempt, describe_exit, describe_stuck, is_stuck
from ..logs import attempt_folder, launcher_log, next_attempt
from ..record import RECORD, JobRecord, read_record
from .spec import RayJobSpec

STRAGGLE = 30.0  # seconds that ranks get to end by themselves after the first has failed


@dataclass(frozen=True)
class AttemptOutcome:
    """What becomes of the job when an attempt is over."""

    exit_code: int
    final: bool  # another attempt would change nothing, or is not wanted


@dataclass(frozen=True)
class Orders:
    """What a worker learns several times a second."""

    stop: bool  # have the rank save and end
    outcome: AttemptOutcome | None  # once the attempt is over


@dataclass
class RunningAttempt:
    attempt: JobAttempt
    world: int
    over: asyncio.Event = field(default_factory=asyncio.Event)
    stop: bool = False
    step: int = 0  # the newest of the run
    codes: dict[int, int] = field(default_factory=dict)


class Coordinator:
    """All methods are for any process of the job, through the actor."""

    def __init__(self, spec: RayJobSpec) -> None:
        self._logs = Path(spec.logs)
        self._record = JobRecord(spec.job.name, "ray", spec.run_folder, "", is_command=bool(spec.job.command))
        if (self._logs / RECORD).exists():
            self._record = read_record(self._logs)
        self._now: RunningAttempt | None = None
        self._ending = ""  # the reason
        self._restarts = self._restarts_left = spec.job.requeue
        self._nodes: dict[int, str] = {}  # Ray's ids of those that the ranks are on
        self._nodes_before: set[str] = set()
        self._judged = 0  # the attempt that the latest verdict was about
        self._steps: list[int] = []  # the newest after each attempt
        self._metrics: dict[str, Any] | None = None

    async def begin(self, world: int) -> int | None:
        """Begin an attempt, asked by its rank 0.

        Returns:
            Its number; None if the job is ending and none is to begin.

        Raises:
            OSError: its folder cannot be made, as on a full disk, which counts as a restart.
        """
        if self._now:
            self._now.over.set()
            self._close(self._now)
        if self._ending:
            return None
        self._nodes, self._nodes_before = {}, set(self._nodes.values())
        try:
            number = next_attempt(self._logs)
            attempt_folder(self._logs, number).mkdir(parents=True)
        except OSError as error:
            self._say(f"no attempt can begin ({error})")
            self._count_restart()
            raise
        self._now = RunningAttempt(JobAttempt(number, time.time()), world)
        self._record.attempts.append(self._now.attempt)
        self._note()
        self._say(f"attempt {number} of {self._record.name}, {counted(world, 'rank')}")
        return number

    async def rank_placed(self, rank: int, host: str, node: str) -> None:
        """Note where a rank is.

        Args:
            node: Ray's id, which changes when a lost node comes back.
        """
        self._nodes[rank] = node
        self._say(f"rank {rank} is on {host}")

    async def ranks_left(self, host: str, seconds: float) -> None:
        """Note that a node ends what an earlier attempt has left on it."""
        self._say(f"ranks of an earlier attempt are still on {host}, with {seconds:.0f} s to save and end")

    async def nodes_before(self) -> set[str]:
        """Where the ranks of the attempt before the present one were."""
        return self._nodes_before

    async def heartbeat(self, attempt: int, metrics: dict[str, Any] | None = None) -> Orders:
        """A sign of life of a worker, and what it is to do.

        Args:
            metrics: a line of metrics.jsonl, from rank 0.
        """
        now = self._current(attempt)
        if now is None:
            return Orders(stop=True, outcome=AttemptOutcome(ExitCode.REQUEUE, final=False))
        if metrics:
            self._metrics = metrics
            now.step = max(now.step, metrics["step"])
        return Orders(now.stop or bool(self._ending), self._outcome(now))

    async def metrics(self) -> dict[str, Any] | None:
        """The newest line that rank 0 has reported."""
        return self._metrics

    async def rank_ended(self, attempt: int, rank: int, exit_code: int, step: int = 0) -> None:
        """The attempt is over with the last rank, or `STRAGGLE` seconds after a failure.

        Args:
            step: the newest of the run, as the rank's node sees it.
        """
        now = self._current(attempt)
        if now is None:
            return
        now.step = max(now.step, step)
        now.codes[rank] = exit_code
        if exit_code:
            self._say(f"rank {rank} ended with exit code {exit_code}")
            asyncio.get_running_loop().call_later(STRAGGLE, now.over.set)
        if len(now.codes) == now.world:
            now.over.set()

    def _outcome(self, now: RunningAttempt) -> AttemptOutcome | None:
        if not now.over.is_set():
            return None
        self._close(now)
        code = _gravest(now.codes)
        return AttemptOutcome(code, final=code in FINAL or bool(self._ending))

    async def stop(self, reason: str) -> bool:
        """Have all ranks save and end, for good; may be asked again.

        Returns:
            Whether an attempt is in progress.
        """
        self._end(f"{reason}: the ranks save and end")
        return await self.is_running()

    async def is_running(self) -> bool:
        """Whether an attempt is in progress."""
        return self._now is not None and not self._now.over.is_set()

    async def drain(self, reason: str, seconds: float) -> None:
        """Have the ranks save and end, to resume elsewhere; returns when they have, or after so long."""
        now = self._now
        if now is None or now.over.is_set():
            return
        now.stop = True
        self._say(f"{reason}: the ranks save and end, to start again")
        try:
            async with asyncio.timeout(seconds):
                await now.over.wait()
        except TimeoutError:
            self._say(f"ranks that had not ended after {seconds:.0f} s are ended now")

    async def verdict(self) -> int | None:
        """The job's exit code, asked when Ray Train has given up; None if another attempt is worth making."""
        now = self._now
        if now and now.attempt.number > self._judged:
            self._judged = now.attempt.number
            now.over.set()
            self._close(now)
            return (await self.exit_code()) if self._ending or _gravest(now.codes) in FINAL[1:] else None
        self._count_restart()  # Ray has begun no attempt
        return (await self.exit_code()) if self._ending else None

    async def exit_code(self) -> int:
        """The last attempt's exit code; if it came to no end, that of a bug, or of a job that was told to end."""
        return _gravest(self._now.codes if self._now else {}) or (ExitCode.REQUEUE if self._ending else ExitCode.BUG)

    def _current(self, attempt: int) -> RunningAttempt | None:
        return self._now if self._now and self._now.attempt.number == attempt else None

    def _close(self, now: RunningAttempt) -> None:
        """Note how an attempt has ended, once."""
        attempt = now.attempt
        if attempt.ended is None:
            attempt.ended = time.time()
            attempt.exit_code = _gravest(now.codes) if len(now.codes) == now.world or any(now.codes.values()) else None
            attempt.step = max(now.step, *self._steps, 0)
            self._steps.append(attempt.step)
            self._say(f"attempt {attempt.number} {describe_exit(attempt.exit_code)}")
            if self._record.makes_steps and is_stuck(self._steps) and attempt.exit_code not in FINAL:
                self._end(describe_stuck(attempt.step))
            elif attempt.exit_code not in FINAL and not now.stop:
                self._count_restart()
            self._note()

    def _count_restart(self) -> None:
        self._restarts_left -= 1
        if self._restarts_left < 0:
            self._end(f"job.requeue allows {self._restarts} restarts, all of which have been used")

    def _end(self, reason: str) -> None:
        """Let there be no other attempt."""
        if not self._ending:
            self._ending = reason
            self._say(reason)

    def _note(self) -> None:
        """Record the attempts, if there is room on the disk: what becomes of them does not depend on it."""
        with suppress(OSError):
            self._record.save(self._logs)

    def _say(self, sentence: str) -> None:
        print(f"cluster: {sentence}", flush=True)
        if self._now:
            path = launcher_log(self._logs, self._now.attempt.number)
            with suppress(OSError), open(path, "a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%H:%M:%S')} {sentence}\n")


def _gravest(codes: dict[int, int]) -> int:
    """The exit code that tells most about an attempt: a mistake, else a failure, else a preemption."""
    found = set(codes.values()) - {ExitCode.DONE}
    for code in (ExitCode.MISTAKE, ExitCode.USAGE, *sorted(found - {ExitCode.REQUEUE})):
        if code in found:
            return code
    return ExitCode.REQUEUE if found else ExitCode.DONE
