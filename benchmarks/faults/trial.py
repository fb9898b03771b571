"""One trial: a run that suffers several faults, one by one, and is restarted by the same command until it finishes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.faults import checks
from benchmarks.faults.injections import FLIPS, KINDS, LATER, POISONS, Hit
from benchmarks.faults.runs import BATCH, STEPS, Attempt, Run, make_shards
from mvlm.errors import ExitCode
from mvlm.training.health.anomaly import LAG

HANG = "train.hang_minutes=0.1"
DISK_MB = 16
FIRST_SPIKE = 20  # batch of the stream: the usual loss must be known first
MOST_ATTEMPTS = 16
NOTICED = {"memory": "changed in memory", "processor": "came out differently"}
JUDGED_AFTER = LAG + 1
"""Steps that may follow a step before all ranks have judged it."""

UNDISTURBED = "nothing"
"""The kind of an attempt that was undisturbed and yet broke a promise."""

NOISE = re.compile(r"\[20|step \d|Traceback|\s*$|.*(Warning|W\d{4} )")


class Workshop:
    """A folder for trials, with the shards they train on and the reference runs they are compared with."""

    def __init__(self, folder: Path, steps: int = STEPS) -> None:
        self._folder, self._steps = folder, steps
        self._shards = make_shards(folder / "shards")
        self._references: dict[tuple[int, ...], Run] = {}

    def reference(self, absent: tuple[int, ...] = ()) -> Run:
        """An undisturbed run, from whose stream the global batches of these numbers are absent.

        Raises:
            RuntimeError: it failed.
        """
        if absent not in self._references:
            ranges = [[number * BATCH, (number + 1) * BATCH] for number in absent]
            folder = self._folder / "-".join(["reference", *map(str, absent)])
            run = Run(folder, self._shards, self._steps, faults={"absent": ranges})
            attempt = run.start()
            if attempt.end() != ExitCode.DONE:
                raise RuntimeError(f"The undisturbed run failed:\n{attempt.output}")
            self._references[absent] = run
        return self._references[absent]

    def trial(self, seed: int, kinds: list[str]) -> list[dict[str, Any]]:
        """Inject faults of these kinds into one run, in that order; poisons are in its stream from the start.

        Returns:
            For each injection, what was done and what came of it; `lost nothing` sums it up.
        """
        draw = Random(seed)
        faults = {kind: [self._poisoned_position(kind, draw)] for kind in dict.fromkeys(kinds) if kind in POISONS}
        batches = tuple(sorted({positions[0] // BATCH for positions in faults.values()}))  # with poisons
        with contextlib.ExitStack() as stack:
            folder = self._folder / f"trial-{seed}"
            disk = stack.enter_context(small_disk(self._folder / f"disk-{seed}")) if "fill_disk" in kinds else None
            shards = self._shards
            if "spoil_image" in kinds:
                shards = Path(shutil.copytree(self._shards, self._folder / f"shards-{seed}"))
            faults |= {kind: [self._flip(draw)] for kind in dict.fromkeys(kinds) if kind in FLIPS}
            overrides = ((HANG,) if "freeze_rank" in kinds else ()) + tuple(
                FLIPS[kind] for kind in faults if kind in FLIPS
            )
            run = Run(folder, shards, self._steps, overrides, faults, disk)
            trial = Trial(run, [kind for kind in kinds if kind in KINDS], draw)
            trial.to_the_end()
            exact = "another_layout" not in kinds
            result = checks.ended(run, self.reference(batches), exact)
            problems = result.pop("problems")
            lines = [*trial.lines(), *_poisonings(run), *_flips(run)]
            for line in lines:
                line["problems"] = line.get("problems", []) + problems
                line |= result
                wrong = not result["losses equal"] or result["samples lost"] or result["samples in other places"]
                line["lost nothing"] = not wrong and not line["problems"]
            if all(line["lost nothing"] for line in lines):
                shutil.rmtree(folder)
        return [{"trial": seed, "attempts": len(run.attempts), "exact": exact} | line for line in lines]

    def _flip(self, draw: Random) -> dict[str, int]:
        return {"step": draw.randint(2, self._steps), "rank": draw.randrange(2), "seed": draw.randrange(2**31)}

    def _poisoned_position(self, kind: str, draw: Random) -> int:
        first = FIRST_SPIKE if kind == "spike" else 0
        return draw.randrange(first * BATCH, self._steps * BATCH)


def _ended(attempt: Attempt) -> tuple[int | None, list[str]]:
    """Its exit code, and a problem if it did not end by itself."""
    try:
        return attempt.end(), []
    except TimeoutError as error:
        return None, [str(error)]


class Trial:
    """Starts a run again and again, injecting faults of `kinds`, until it finishes by itself."""

    def __init__(self, run: Run, kinds: list[str], draw: Random) -> None:
        self.run = run
        self._left = list(kinds)
        self._draw = draw
        self._hits: list[tuple[str, Hit, dict[str, Any]]] = []

    def to_the_end(self) -> None:
        """Run until it finishes, or give up after MOST_ATTEMPTS, when its checks will fail."""
        attempt = self.run.start()
        expected, may_give_way = "", False
        while len(self.run.attempts) < MOST_ATTEMPTS:
            kind, hit, stuck = self._inject(attempt)
            code, problems = _ended(attempt)
            problems += stuck
            reached = self.run.step()
            unread = hit is not None and not hit.what.get("training", True) and not re.search(expected, attempt.output)
            problems += self._wrong(attempt, hit, code, "" if unread else expected, may_give_way, unread)
            facts: dict[str, Any] = {"attempt": attempt.number, "code": code, "reached": reached}
            facts |= {"sentence": sentence(attempt, hit.says if hit else ""), "problems": problems}
            if not unread:  # otherwise it was over before it could look at the damaged checkpoint
                expected = hit.next_says if hit else ""
            may_give_way = bool(hit and hit.successor and code == ExitCode.DONE)  # if two start together, either may
            if hit:
                facts["seconds to end"] = round(time.time() - hit.at, 2)
                self._hits.append((kind, hit, facts))
            elif problems:
                self._hits.append((UNDISTURBED, Hit({}), facts))
            if hit and hit.mend:
                hit.mend()
            if hit and hit.successor:
                attempt = hit.successor
            elif code == ExitCode.DONE and reached == self.run.steps:
                return
            else:
                attempt = self.run.start()

    def _inject(self, attempt: Attempt) -> tuple[str, Hit | None, list[str]]:
        """Inject faults until one ends this attempt; returns its kind, the hit, and a problem if its moment never came.

        Faults before it that do not end the attempt are recorded at once.
        """
        while self._left:
            kind = self._left.pop(0)
            try:
                hit = KINDS[kind](attempt, self._draw)
            except TimeoutError as error:
                attempt.kill()
                return "", None, [str(error)]
            if hit is None:
                break
            if hit.codes:
                return kind, hit, []
            self._hits.append((kind, hit, {"attempt": attempt.number, "reached": self.run.step(), "problems": []}))
        return "", None, []

    def _wrong(
        self, attempt: Attempt, hit: Hit | None, code: int | None, expected: str, may_give_way: bool, unread: bool
    ) -> list[str]:
        """The promises that this attempt has broken."""
        problems = [] if unread or (hit and hit.harms_latest) else checks.between_attempts(self.run)
        output = attempt.output
        step = int(latest[5:]) if (latest := self.run.latest()) else 0
        at_the_end = self.run.step() == self.run.steps
        over = code == ExitCode.DONE and at_the_end  # it finished before it could notice
        saved_all = hit is not None and hit.keeps and at_the_end and step == self.run.steps
        gave_way = may_give_way and code == ExitCode.MISTAKE and re.search(LATER, output)
        if not over and not gave_way and code not in (hit.codes if hit else (ExitCode.DONE,)):
            problems.append(f"exit code {code}")
        if hit and not over and not saved_all and not re.search(hit.says, output):
            problems.append(f"did not say {hit.says!r}")
        if not re.search(expected, output):
            problems.append(f"did not say {expected!r}")
        if "Traceback" in output:
            problems.append("a traceback: " + output[output.index("Traceback") :][-600:])
        if hit and hit.keeps and not over and step != self.run.step() and not self.run.faults:
            problems.append(f"ended at step {self.run.step()} and saved step {step}")
        return problems

    def lines(self) -> list[dict[str, Any]]:
        """A line for each fault of the finished run."""
        stream = self.run.stream(0)
        lines = []
        for kind, hit, facts in self._hits:
            number = facts.pop("attempt")
            later = [line for line in stream if line["attempt"] > number]
            if hit.codes and later:
                facts["steps repeated"] = facts["reached"] - later[0]["step"] + 1
                beyond = [line["time"] for line in later if line["step"] > facts["reached"]]
                regained = beyond[0] if beyond else later[-1]["time"]
                facts["seconds lost"] = round(regained - hit.at, 2)
            lines.append({"kind": kind, "at": round(hit.at, 3), "what": hit.what} | facts)
        return lines


def _poisonings(run: Run) -> list[dict[str, Any]]:
    """A line for each poisoned batch, with the time until another one was trained on in its place."""
    lines = []
    for kind, (position,) in ((kind, run.faults[kind]) for kind in POISONS if kind in run.faults):
        met = [line for rank in range(2) for line in run.stream(rank) if position in line["positions"]]
        what = {"position": position, "step": met[0]["step"] if met else None, "met": len(met)}
        line: dict[str, Any] = {"kind": kind, "at": met[0]["time"] if met else None, "what": what}
        if met:
            instead = [line["time"] for line in run.stream(0) if line["step"] == met[-1]["step"]][-1]
            line["seconds lost"] = round(instead - met[-1]["time"], 2)
        lines.append(line)
    return lines


def _flips(run: Run) -> list[dict[str, Any]]:
    """A line for each flipped bit: where it was, whether the run noticed, and the time until it was made good."""
    lines = []
    for kind, (flip,) in ((kind, run.faults[kind]) for kind in FLIPS if kind in run.faults):
        path = run.folder / f"{kind}-{flip['step']}.json"
        line: dict[str, Any] = {"kind": kind, "what": flip | (json.loads(path.read_text()) if path.exists() else {})}
        if path.exists():
            at = path.stat().st_mtime
            noticed = any(NOTICED[kind] in attempt.output for attempt in run.attempts)
            line |= {"at": round(at, 3), "noticed": noticed}
            if noticed and (regained := _made_good(run, at, flip["step"])):
                line["seconds lost"] = round(regained - at, 2)
            if not noticed and _went_on(run, at, flip):
                line["problems"] = [f"the run went on from step {flip['step']} without a word of it"]
        lines.append(line)
    return lines


def _made_good(run: Run, since: float, step: int) -> float | None:
    """When a run that has rolled back to a checkpoint passes this step again."""
    later = [each for each in run.stream(0) if each["time"] >= since]
    repeated = itertools.dropwhile(lambda each: each["step"] > step, later)
    return next((each["time"] for each in repeated if each["step"] > step), None)


def _went_on(run: Run, since: float, flip: dict[str, int]) -> bool:
    """Whether the run made the following steps until after this one had been judged."""
    later = [each["step"] for each in run.stream(flip["rank"]) if each["time"] >= since]
    return later[: JUDGED_AFTER + 1] == [flip["step"] + number for number in range(1, JUDGED_AFTER + 2)]


def sentence(attempt: Attempt, promised: str) -> str:
    """The last line of its output that matches the pattern, or its last line if none does."""
    said = [line for line in attempt.output.splitlines() if not NOISE.match(line)]
    fitting = [line for line in said if promised and re.search(promised, line)]
    return (fitting or said or [""])[-1].replace(f"{attempt.run.folder.parent}/", "")[:400]


def may_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of a few megabytes; root only."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
