"""The entry point of a job on Ray, run by Ray's job server: `python -m cluster.ray.driver LOGS/ray.json`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from mvlm.errors import ExitCode, first_line
from mvlm.runtime.launch import end_with_parent
from mvlm.runtime.wording import counted

from ..logs import next_attempt, rank_log
from ..processes import PATIENCE
from .spec import RayJobSpec
from .sweep import run_sweep
from .train import ACTOR, train

SETTLE_SECONDS = 30.0  # for Ray to notice that its workers have ended


def main(argv: list[str]) -> int:
    """Run the job to its end; returns its exit code."""
    end_with_parent()  # Ray's shell, without which the job counts as failed, or a pipeline's step
    spec = RayJobSpec.load(Path(argv[0]))
    os.chdir(spec.directory)
    is_preflight = spec.words[0] == "preflight"
    try:
        ray.init(log_to_driver=not is_preflight)  # so that its result can be seen
    except Exception as error:  # Ray raises bare ones if a part of it does not come up in time
        reason = first_line(error)
        print(f"cluster: Ray cannot be joined on this node ({reason}): see `ray status`, and submit again.", flush=True)
        return ExitCode.MISTAKE if is_preflight else ExitCode.REQUEUE
    _watch_for_the_end(spec)
    if is_preflight:
        return _preflight(spec)
    return run_sweep(spec) if spec.job.sweep else train(spec)


def _preflight(spec: RayJobSpec) -> int:
    """Have the ranks measure, and print what the first of them says."""
    logs = Path(spec.logs)
    number = next_attempt(logs)
    code = train(spec, waits=False)
    if next_attempt(logs) == number:
        wanted = " and ".join(f"{amount:g} {name}s" for name, amount in spec.resources().items())
        print(f"cluster: Ray has no room for {counted(spec.ranks()[1], 'rank')} of {wanted} each: {_nodes()}.")
        return ExitCode.MISTAKE
    if rank_log(logs, number, 0).exists():
        print(rank_log(logs, number, 0).read_text(encoding="utf-8", errors="replace"), end="")
    if code not in (ExitCode.DONE, ExitCode.MISTAKE):
        print(f"cluster: a rank ended with exit code {code}, or its node was lost to Ray: see `ray list nodes`.")
    return code


def _nodes() -> str:
    """Such as "n1 has 8 CPUs and 2 GPUs, n2 is dead", including those that others use."""
    said = []
    for node in sorted(ray.nodes(), key=lambda node: not node["Alive"]):
        has = node["Resources"]
        room = f"has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs" if node["Alive"] else "is dead"
        said.append(f"{node['NodeName']} {room}")
    return ", ".join(said)


def _watch_for_the_end(spec: RayJobSpec) -> None:
    """Have all ranks save and end on SIGTERM, which `ray job stop` and `cancel` send, and before the time is up."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    limit = spec.job.time_seconds
    patience = PATIENCE if limit is None else float(spec.job.warning_seconds)
    wait = None if limit is None else max(0.0, limit - patience)

    def end() -> None:
        reason = "stopped" if stopped.wait(wait) else "the time is nearly up"
        deadline = time.monotonic() + patience
        while any(_ask_coordinators(lambda actor: actor.stop.remote(reason))) and time.monotonic() < deadline:
            time.sleep(1)  # asked again: a sweep begins other runs meanwhile
        time.sleep(SETTLE_SECONDS)  # unless the driver waits for nodes, it ends meanwhile, and this thread with it
        sys.stdout.flush()
        os._exit(ExitCode.REQUEUE)

    threading.Thread(target=end, daemon=True).start()


def _ask_coordinators(question: Callable[[Any], Any]) -> list[Any]:
    """The answers of those of this job that are alive; a sweep has one for each of its runs."""
    answers = []
    for name in ray.util.list_named_actors():
        if name.startswith(ACTOR):
            try:
                answers.append(ray.get(question(ray.get_actor(name)), timeout=10))
            except (RayError, ValueError):  # it has ended meanwhile
                continue
    return answers


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
