"""Checks where a run would begin: its own checkpoints, those of `checkpoint.resume` or `.init`, and its mirror."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from mvlm.check.folders import nearest
from mvlm.check.report import Report
from mvlm.check.shards import report_neighbours
from mvlm.checkpoint.description import METRICS
from mvlm.checkpoint.integrity import check_continuity, find_damage, read_whole_state
from mvlm.checkpoint.layout import ATTEMPTS, step_folders
from mvlm.checkpoint.mirror import Mirror
from mvlm.checkpoint.newest import search_whole
from mvlm.checkpoint.peers import ROOM, SHARED
from mvlm.checkpoint.state import TrainState
from mvlm.config.schema import Config
from mvlm.data.loading.sampler import make_sampler, order_of, resumed
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from mvlm.runtime.jsonl import JsonLinesTail
from mvlm.training.checkpoint.resume import Start, given_start, with_stored_order
from mvlm.training.fit.settings import resume_config
from mvlm.training.health.heartbeat import HEARTBEATS, QUIET_AFTER, duration, period_s, read

TAIL_BYTES = 1 << 16


def checkpoint_bytes(parameters: int, config: Config) -> int:
    """Size of a checkpoint: fp32 weights, AdamW's two moments and, if the run keeps one, the average of the weights."""
    return (12 + 4 * (config.train.ema > 0)) * parameters


def check_start(report: Report, config: Config, deep: bool) -> tuple[Start | None, TrainState | None]:
    """Where training would begin, and the state that it would resume from; None for either that cannot be found."""
    run = Path(config.run.dir)
    _check_writable(report, run)
    start, state = _find_start(report, config, run, deep)
    _check_alone(report, config, state.step if state else -1)
    _check_others(report, run, start, deep)
    return start, state


def _find_start(report: Report, config: Config, run: Path, deep: bool) -> tuple[Start | None, TrainState | None]:
    how = "lengths and hashes right" if deep else "lengths right (hashes: --deep)"
    with report.judged("checkpoint"):
        start = given_start(run, config.checkpoint)
        if start is None:
            found = search_whole(run, hashes=deep)
            start = Start(found.whole, resumes=True, own=True)
            if found.problem:
                report.warning(
                    "checkpoint",
                    f"{found.problem}: training would resume from {found.whole.name}, the newest whole checkpoint; "
                    "write another's name into it if that is not what you want.",
                )
            if found.damaged:
                report.warning(
                    "checkpoint",
                    f"{found.damaged[0]} is damaged ({found.reason}): training would set it aside and resume from "
                    f"{found.whole.name}; bring a whole copy back first if there is one.",
                )
        if start.checkpoint is None:
            report.right("checkpoint", f"{run} holds no checkpoint: the run begins from scratch.")
            return start, None
        if not start.resumes:
            if reason := find_damage(start.checkpoint, hashes=deep):
                raise UserError(f"{start.checkpoint} is damaged ({reason}): set checkpoint.init to another.")
            report.right("checkpoint", f"{start.checkpoint} gives its weights, {how}.")
            return start, None
        state = read_whole_state(start.checkpoint, hashes=deep and not start.own)  # the search has hashed its own
        report.right("checkpoint", f"{start.checkpoint} is where the run resumes, at step {state.step}, {how}.")
        return start, state
    return None, None


def check_continuing(report: Report, config: Config, checkpoint: Path, state: TrainState, mixture: Mixture) -> None:
    """Check that the run's shards are the checkpoint's, and report the order of samples from there on."""
    with report.judged("checkpoint"):
        check_continuity(checkpoint, state, mixture.fingerprint, mixture.selection)
        report.right("checkpoint", f"{checkpoint.name} was trained on these very shards.")
        stored = with_stored_order(state, checkpoint).order
        order, change = resumed(stored, order_of(config.data), state.samples_seen, mixture.per_epoch)
        make_sampler(mixture, config.run.seed, order)
        if change:
            report.right("checkpoint", change)
        report_neighbours(report, mixture, config, order)


def settle_config(report: Report, config: Config, given: frozenset[str], start: Start | None) -> Config:
    """The configuration that the run would resume with, reporting what changes; as given if that is refused."""
    if start and start.resumes:
        with report.judged("checkpoint"):
            resumed = resume_config(config, given, start)
            for sentence in resumed.reported:
                report.right("checkpoint", sentence)
            return resumed.config
    return config


def check_mirror(report: Report, config: Config) -> None:
    """Check `checkpoint.mirror` by reading alone."""
    if not config.checkpoint.mirror:
        return
    with report.judged("mirror"):
        history = Mirror(config.checkpoint.mirror).history()
        newest = f"its newest checkpoint is of step {history[0].step}" if history else "it holds no checkpoint yet"
        report.right("mirror", f"{config.checkpoint.mirror} can be read, and {newest}.")


def check_room(report: Report, config: Config, parameters: int) -> None:
    """Check that the disk has room for one more checkpoint."""
    run, wanted = Path(config.run.dir), checkpoint_bytes(parameters, config)
    free = shutil.disk_usage(nearest(run)).free
    sizes = f"a checkpoint takes {wanted / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free"
    if wanted > free:
        report.wrong("checkpoint", f"{run} has no room: {sizes}; free some, or set run.dir to a larger disk.")
    else:
        report.right("checkpoint", f"{run} has room: {sizes}.")


def check_memory(report: Report, config: Config, parameters: int, world: int) -> None:
    """Check that this machine's shared memory has room for the copies that `checkpoint.peers` sends it.

    The number of ranks on a node is not known, so one rank's share is judged.
    """
    if not config.checkpoint.peers:
        return
    wanted, free = checkpoint_bytes(parameters, config) / world, shutil.disk_usage(nearest(SHARED)).free
    sizes = f"a rank's copies take {wanted / 1e9:.3g} GB of {SHARED}, where half of the {free / 1e9:.3g} GB free"
    if wanted > ROOM * free:
        report.warning(
            "checkpoint", f"checkpoint.peers has no room: {sizes} may be taken; enlarge it, or use more ranks."
        )
    else:
        report.right("checkpoint", f"checkpoint.peers has room: {sizes} may be taken.")


def _check_others(report: Report, run: Path, start: Start | None, deep: bool) -> None:
    """Check the run's own checkpoints not reported on yet: a run falls back on an older one."""
    for folder in reversed(step_folders(run)):
        known = start is not None and folder == start.checkpoint
        known = known or any(found.sentence.startswith(f"{folder} is damaged") for found in report.findings)
        if not known and (reason := find_damage(folder, hashes=deep)):
            report.warning("checkpoint", f"{folder} is damaged ({reason}): copy it again, or delete it.")


def _check_alone(report: Report, config: Config, saved: int) -> None:
    """Warn if ranks still train in the run folder, with steps yet to be saved, judging by the newest heartbeat."""
    run = Path(config.run.dir)
    attempt = max((int(path.stem) for path in (run / ATTEMPTS).glob("*.json") if path.stem.isdecimal()), default=0)
    numbers = (path.stem.removeprefix("rank-") for path in (run / HEARTBEATS).glob("rank-*.json"))
    ranks = [int(number) for number in numbers if number.isdecimal()]
    beats = [beat for rank in ranks if (beat := read(run / HEARTBEATS, rank, attempt))]
    if not beats:
        return
    newest = max(beats, key=lambda beat: beat.time)
    age = time.time() - newest.time
    lines = JsonLinesTail(run / METRICS, TAIL_BYTES).new()  # the last may be more recent than the heartbeat
    reported = next((line["step"] for line in reversed(lines) if "loss" in line), 0)
    has_ended = newest.ends or newest.is_gone or max(newest.step, reported) <= saved
    if not has_ended and age < QUIET_AFTER * period_s(config.train.hang_minutes):
        report.warning(
            "run",
            f"Attempt {attempt} is training in {run} (heartbeat {duration(age)} ago on {newest.host}): a run that "
            "begins there ends it at its next step; stop it first, or set another run.dir.",
        )


def _check_writable(report: Report, run: Path) -> None:
    place = nearest(run)
    if not place.is_dir():
        report.wrong("run", f"{place} is in the way of the run folder {run} and is not a folder: set run.dir.")
    elif not os.access(place, os.W_OK | os.X_OK):
        report.wrong("run", f"{run} cannot be made, as {place} is not writable: set run.dir elsewhere.")
    else:
        report.right("run", f"{run} can be {'written to' if place == run.absolute() else 'made'}.")
