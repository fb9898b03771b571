"""A command on whichever node of Ray has room for it, begun again elsewhere if that node is lost."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from mvlm.errors import ExitCode, first_line
from mvlm.runtime.launch import end_with_parent

from ..attempt import shell_code

RETRIES = 5
"""Retries of a command whose worker or node was lost."""
POLL_SECONDS = 0.1


class Runner:
    """An actor that runs a command. If an actor's node falls silent, Ray says so as soon as it gives the node up;
    whoever waits for a task there learns of it only from gRPC, up to seven minutes later.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def begin(self) -> None:
        """Returns once the actor has its place."""

    def run(self, words: Sequence[str], folder: str) -> int:
        """Run the command to its end; returns its exit code.

        Args:
            folder: where its paths count from; Ray's own is another.
        """
        self._process = subprocess.Popen(words, cwd=folder, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)
        if self._stopped:
            self._process.terminate()
        return shell_code(self._process.wait())

    def stop(self) -> None:
        """Have it save and end."""
        self._stopped = True
        if self._process and self._process.poll() is None:
            self._process.terminate()


class RemoteProcess:
    """A command in this process's folder, from the moment at which Ray is asked for room.

    Args:
        name: as Ray shows it, unique within this driver.
        memory: bytes; 0 if it does not matter.
    """

    def __init__(self, words: Sequence[str], name: str, cpus: int, gpus: int, memory: int = 0) -> None:
        room: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "name": name, "max_concurrency": 2}
        if memory:
            room["memory"] = memory
        self._actor = _start(room | {"max_restarts": RETRIES, "max_task_retries": RETRIES})
        self._begun = self._actor.begin.remote()
        self._run = self._actor.run.remote(list(words), os.getcwd())
        self._code: int | None = None
        self._withdrawn = False

    def poll(self) -> int | None:
        """Its exit code; None while it runs or waits for room."""
        if self._code is None and ray.wait([self._run], timeout=0)[0]:
            self._code = self._outcome()
            self._actor = None  # gives its room to others
        return self._code

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(POLL_SECONDS)
        return code

    def stop(self) -> None:
        """Have it save and end, or never begin."""
        if self._actor and ray.wait([self._begun], timeout=0)[0]:
            self._actor.stop.remote()
        elif self._actor:
            self._withdrawn = True
            ray.kill(self._actor)

    def _outcome(self) -> int:
        try:
            return int(ray.get(self._run))
        except RayError as error:
            if self._withdrawn and isinstance(error, RayActorError):
                return ExitCode.REQUEUE
            print(f"cluster: {first_line(error)}", flush=True)
            return ExitCode.BUG


def _start(options: dict[str, Any]) -> Any:
    return ray.remote(Runner).options(**options).remote()
