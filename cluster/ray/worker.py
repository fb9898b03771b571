"""A Ray Train worker: it starts one rank of `mvlm train` as a process, watches over it and reports its metrics.

What an earlier attempt has left on this machine is ended first, while a rank that trains does its imports. A rank does
not outlive its worker for long: it notices the death of the process that started it, saves and ends, and the workers of
the next attempt on that machine end what is left of it.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import ActorUnavailableError, GetTimeoutError
from ray.train.collective import broadcast_from_rank_zero
from ray.util.metrics import Gauge

from mvlm.errors import UserError
from mvlm.runtime.launch import HELD, free_port

from ..attempt import describe_exit, shell_code
from ..environment import for_process
from ..logs import attempt_folder, attempt_numbers, rank_log
from ..processes import MARK, PATIENCE, Stopper, members, send
from ..record import newest_measures, newest_step
from .coordinator import AttemptOutcome
from .meetings import Meetings
from .spec import RayJobSpec

BEAT_SECONDS = 0.5
ASK_SECONDS = 5.0  # to wait for an answer from the driver's node, which may be out of reach for a while
LEFT_BEHIND_SECONDS = 20.0  # for what an earlier attempt has left on this machine to end by itself
WITHOUT_PEERS_SECONDS = 2.0  # the same, if a node of it is lost: its ranks wait for one another, and cannot save
OUT_OF_REACH = object()
SHOWN = ("step", "loss", "pairs_per_s")


class RankFailed(Exception):
    """It makes Ray Train start the workers again, as often as the job allows."""


def run_rank(spec: RayJobSpec, coordinator: Any, reports: Path) -> int:
    """Run the rank of this worker to its end; called by Ray Train on each worker.

    Args:
        coordinator: handle of the actor.
        reports: folder of Ray Train's own for this run.

    Returns:
        The exit code of an attempt after which there is to be no other.

    Raises:
        RankFailed: another attempt may resume from the latest checkpoint.
    """
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    attempt, host, port = None, ray.util.get_node_ip_address(), free_port()
    if rank == 0:
        attempt = ray.get(coordinator.begin.remote(world))
    attempt, master, port = broadcast_from_rank_zero((attempt, host, port))
    if attempt is None:
        return ray.get(coordinator.exit_code.remote())
    coordinator.rank_placed.remote(rank, host, ray.get_runtime_context().get_node_id())
    ranks = {"RANK": rank, "LOCAL_RANK": context.get_local_rank(), "WORLD_SIZE": world}
    ranks |= {"LOCAL_WORLD_SIZE": context.get_local_world_size()}
    layout = ranks | {"MASTER_ADDR": master, "MASTER_PORT": port}
    log = rank_log(Path(spec.logs), attempt, rank)
    variables = {name: str(value) for name, value in layout.items()} | {MARK: str(log.resolve())}

    def end_earlier_attempts() -> None:
        _end_earlier_attempts(Path(spec.logs), attempt, host, coordinator)

    if spec.words[0] == "train":
        process = _start(spec, variables | {HELD: "1"}, log)
        _release(process, end_earlier_attempts)
    else:
        end_earlier_attempts()
        process = _start(spec, variables, log)
    meetings = Meetings(Path(spec.run_folder), reports, coordinator, attempt, rank)
    meetings.start()
    try:
        outcome = RankWatch(process, coordinator, spec, attempt, rank).run()
    except BaseException:
        process.terminate()  # the driver has died, and Ray is about to end this worker: save
        raise
    meetings.end()
    if not outcome.final:
        raise RankFailed(f"Attempt {attempt} {describe_exit(outcome.exit_code)}; rank {rank} logs in {log}.")
    return outcome.exit_code


def _start(spec: RayJobSpec, variables: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start the rank or, if this node lacks a variable that the job refers to, a process that says so and ends as a
    rank does for a mistake, after which no other attempt is made."""
    command = spec.command()
    try:
        variables = for_process(spec.job) | variables
    except UserError as mistake:
        sentence = f"cluster: {str(mistake).rstrip('.')}, which on {socket.gethostname()} is `ray start`."
        command = [sys.executable, "-c", "import sys; sys.exit(sys.argv[1])", sentence]
    with open(log, "ab") as out:
        return subprocess.Popen(
            command,
            cwd=spec.directory,
            env=os.environ | variables,
            stdin=subprocess.PIPE if HELD in variables else subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # what ends this worker must not reach a rank that is saving
        )


def _release(process: subprocess.Popen[bytes], after: Callable[[], None]) -> None:
    """Let a rank that is held begin once `after` has run; if that fails, the rank ends."""
    assert process.stdin
    # it may have ended for a mistake, as its exit code says
    with contextlib.suppress(BrokenPipeError), process.stdin:
        after()
        process.stdin.write(b"\n")


class RankWatch:
    """Passes on what the coordinator wants of a rank, and how the rank has ended, until its attempt is over."""

    def __init__(
        self, process: subprocess.Popen[bytes], coordinator: Any, spec: RayJobSpec, attempt: int, rank: int
    ) -> None:
        self._process, self._coordinator, self._attempt, self._rank = process, coordinator, attempt, rank
        self._run = Path(spec.run_folder)
        self._gauges = [(name, Gauge(f"mvlm_{name}", f"{name} of a run", ("job",))) for name in SHOWN if rank == 0]
        for _, gauge in self._gauges:
            gauge.set_default_tags({"job": spec.job.name})
        self._seen = newest_measures(self._run)

    def run(self) -> AttemptOutcome:
        process, stop_by, ended = self._process, math.inf, False
        while True:
            ended = ended or (process.poll() is not None and self._tell_end())
            orders = _answer(self._coordinator.heartbeat.remote(self._attempt, self._new_metrics()))
            if orders is not OUT_OF_REACH and orders.outcome:
                process.kill()
                process.wait()
                return orders.outcome
            if orders is not OUT_OF_REACH and orders.stop and stop_by == math.inf:
                send(process.pid, signal.SIGTERM)
                stop_by = time.monotonic() + PATIENCE
            if time.monotonic() > stop_by:
                process.kill()
            time.sleep(BEAT_SECONDS)

    def _tell_end(self) -> bool:
        """Tell the coordinator how the rank has ended; returns whether it could be told."""
        step = newest_step(self._run) if self._rank == 0 else 0
        code = shell_code(self._process.returncode)
        return _answer(self._coordinator.rank_ended.remote(self._attempt, self._rank, code, step)) is not OUT_OF_REACH

    def _new_metrics(self) -> dict[str, Any] | None:
        """The run's newest, from rank 0, if they have not been seen; they also become metrics of Ray."""
        if self._rank or (line := newest_measures(self._run)) == self._seen:
            return None
        self._seen = line
        for name, gauge in self._gauges:
            gauge.set((line or {}).get(name) or 0.0)
        return line


def _answer(question: Any) -> Any:
    """What the coordinator answers; `OUT_OF_REACH` if it does not for now: the rank continues, and Ray decides."""
    try:
        return ray.get(question, timeout=ASK_SECONDS)
    except (GetTimeoutError, ActorUnavailableError):
        return OUT_OF_REACH


def _patience(coordinator: Any) -> float:
    """Seconds that ranks of the previous attempt get to end by themselves."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    whole = ray.get(coordinator.nodes_before.remote()) <= alive
    return LEFT_BEHIND_SECONDS if whole else WITHOUT_PEERS_SECONDS


def _end_earlier_attempts(logs: Path, attempt: int, host: str, coordinator: Any) -> None:
    """End the ranks of earlier attempts, whose workers have died: one that waits for a lost node would stay long."""
    folders = [attempt_folder(logs, earlier) for earlier in attempt_numbers(logs) if earlier < attempt]
    for folder in folders:
        if members(folder):
            seconds = _patience(coordinator)
            coordinator.ranks_left.remote(host, seconds)
            Stopper(folder).end(seconds)
