"""A Ray Train worker: it starts one rank of `mvlm train` as a process, watches over it and reports its metrics.

The rank outlives no worker for long: it notices the death of the process that started it, saves and ends, and the
workers of the next attempt on that machine end what is left of it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import ActorUnavailableError, GetTimeoutError
from ray.util.metrics import Gauge

from cluster.environment import free_port
from cluster.logs import attempt_folder, attempt_numbers, rank_log
from cluster.processes import MARK, Stopper, send
from cluster.ray.group import Place, Verdict
from cluster.ray.spec import Spec
from cluster.record import METRICS, newest_step
from cluster.watch import PATIENCE, PREEMPTED, describe_exit

BEAT_SECONDS = 0.5
ASK_SECONDS = 5.0  # to wait for an answer of the driver's node, which may be out of reach for a while
LEFT_BEHIND_SECONDS = 20.0  # for what an earlier attempt has left on this machine to end by itself
OUT_OF_REACH = object()
SHOWN = ("step", "loss", "pairs_per_s")


class RankFailed(Exception):
    """Ray Train starts the workers again for it, as often as the job allows."""


def run_rank(spec: Spec, group: Any) -> int:
    """Run the rank of this worker to its end; called by Ray Train on each worker.

    Args:
        group: handle of the actor `ray_group.Group`.

    Returns:
        The exit code of an attempt after which there is to be no other.

    Raises:
        RankFailed: another attempt may go on from the latest checkpoint.
    """
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it prints every report
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    workers = ray.get_runtime_context().get_placement_group_id()
    address = ray.util.get_node_ip_address()
    place: Place = ray.get(group.join.remote(workers, rank, world, address, free_port()))
    if not place.wanted:
        return PREEMPTED
    _end_earlier_attempts(Path(spec.logs), place.attempt)
    ranks = {"RANK": rank, "LOCAL_RANK": context.get_local_rank(), "WORLD_SIZE": world}
    ranks |= {"LOCAL_WORLD_SIZE": context.get_local_world_size()}
    layout = ranks | {"MASTER_ADDR": place.address, "MASTER_PORT": place.port}
    log = rank_log(Path(spec.logs), place.attempt, rank)
    variables = {name: str(value) for name, value in layout.items()} | {MARK: str(log.resolve())}
    metrics = Metrics(Path(spec.run_folder) / METRICS, spec.job.name) if rank == 0 else None
    with open(log, "ab") as out:
        process = subprocess.Popen(
            spec.command(),
            cwd=spec.directory,
            env=os.environ | spec.environment() | variables,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # what ends this worker must not reach a rank that is saving
        )
    try:
        verdict = _watch(process, group, place.attempt, rank, metrics)
    except BaseException:
        process.terminate()  # the driver has died, and Ray is about to end this worker: save
        raise
    if not verdict.final:
        raise RankFailed(f"Attempt {place.attempt} {describe_exit(verdict.exit_code)}; rank {rank} logs in {log}.")
    return verdict.exit_code


def _watch(process: subprocess.Popen[bytes], group: Any, attempt: int, rank: int, metrics: Metrics | None) -> Verdict:
    """Pass on what the group wants of the rank, and how it has ended, until the attempt is over."""
    reporter = Reporter()
    told: float | None = None
    ended = False
    while True:
        if not ended and process.poll() is not None:
            step = metrics.newest_step() if metrics else 0
            ended = _answer(group.ended.remote(attempt, rank, exit_code(process), step)) is not OUT_OF_REACH
        fresh = metrics.newest() if metrics and reporter.idle else None
        beat = _answer(group.beat.remote(attempt, fresh, reporter.given))
        if beat is not OUT_OF_REACH:
            reporter.give(beat.reports)
            if beat.verdict:
                process.kill()
                process.wait()
                return beat.verdict
            if beat.stop and told is None:
                send(process.pid, signal.SIGTERM)
                told = time.monotonic()
        if told is not None and time.monotonic() - told > PATIENCE:
            process.kill()
        time.sleep(BEAT_SECONDS)


def _answer(question: Any) -> Any:
    """What the group answers; `OUT_OF_REACH` where it does not for now: the rank goes on, and Ray decides."""
    try:
        return ray.get(question, timeout=ASK_SECONDS)
    except (GetTimeoutError, ActorUnavailableError):
        return OUT_OF_REACH


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """As a shell would give it."""
    code = process.returncode
    return code if code >= 0 else 128 - code


def _end_earlier_attempts(logs: Path, attempt: int) -> None:
    """End the ranks of earlier attempts whose workers have died, as one that waits for a lost node would for long."""
    for earlier in attempt_numbers(logs):
        if earlier < attempt:
            Stopper(attempt_folder(logs, earlier)).end(LEFT_BEHIND_SECONDS)


class Metrics:
    """Reads what this attempt adds to metrics.jsonl, and shows it among Ray's own metrics.

    Args:
        job: its name, a tag of the gauges `mvlm_step`, `mvlm_loss` and `mvlm_pairs_per_s`.
    """

    def __init__(self, path: Path, job: str) -> None:
        self._path = path
        self._read = path.stat().st_size if path.exists() else 0
        self._gauges = {name: Gauge(f"mvlm_{name}", f"{name} of a run", ("job",)) for name in SHOWN}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"job": job})

    def newest_step(self) -> int:
        """Of the run, saved or told of."""
        return newest_step(self._path.parent)

    def newest(self) -> dict[str, Any] | None:
        """The last whole line with a loss that has come since the last call."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return None
        if not whole:
            return None
        self._read += len(whole) + 1
        for line in reversed(whole.splitlines()):
            metrics = json.loads(line)
            if "loss" in metrics:
                for name, gauge in self._gauges.items():
                    gauge.set(metrics.get(name, 0.0))
                return metrics
        return None


class Reporter:
    """Hands lines to `ray.train.report` in a thread: a report waits for those of all workers, and the rank must not."""

    def __init__(self) -> None:
        self.given = 0
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._report, daemon=True).start()

    @property
    def idle(self) -> bool:
        return self._lines.unfinished_tasks == 0

    def give(self, lines: list[dict[str, Any]]) -> None:
        self.given += len(lines)
        for line in lines:
            self._lines.put(line)

    def _report(self) -> None:
        while True:
            ray.train.report(self._lines.get())
            self._lines.task_done()
