"""Steps that all ranks take together, and that a dead one cannot hold up."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mvlm.errors import UserError
from mvlm.runtime.rendezvous import Rendezvous, store_address

SLACK_S = 5.0
END_S = 30.0  # for rank 0 to write what it has found
POLL_S = 0.02
LATE = "late"


class RollCall:
    """Rank 0 gives every rank a task, hears its answer, and continues with those that answer in time.

    Each of the others receives only its own tasks, whose length does not grow with the number of ranks.

    Args:
        host: this rank's.
        patience: seconds that all ranks have to join.

    Raises:
        UserError: rank 0 cannot be reached.
    """

    def __init__(self, host: str, patience: float) -> None:
        host_0, port = store_address()
        self._who = f"rank {os.environ.get('RANK', '0')} on {host}"
        self._rank_0 = f"rank 0 at {host_0}:{port}"
        self._guard = threading.Timer(0, self._give_up)
        self._heard = 0  # number of steps
        self.allow(patience)
        with self._reached():
            self.rendezvous = Rendezvous(patience)
        self.rank, self.living = self.rendezvous.rank, list(range(self.rendezvous.world))

    def hear(self, word: Any, patience: float) -> dict[int, Any]:
        """Rank 0 calls: its own answer and those of all ranks that give one in time; the others take no more part.

        Args:
            patience: seconds that they have from now on.

        Raises:
            UserError: the store is gone.
        """
        self.allow(2 * patience)
        self._heard += 1
        with self._reached():
            words = {0: word} | self._collect(f"words/{self._heard}", self.living[1:], patience)
        self.assign(dict.fromkeys(set(self.living) - words.keys(), LATE))
        self.living = sorted(words)
        return words

    def assign(self, tasks: dict[int, Any]) -> None:
        """Rank 0 calls: tell other ranks what to do next.

        Raises:
            UserError: the store is gone.
        """
        with self._reached():
            for rank, task in tasks.items():
                self.rendezvous.post(f"tasks/{self._heard}/{rank}", task)

    def answer(self, step: str, word: Any, patience: float) -> Any:
        """Give rank 0 this rank's answer to a step, and wait for the next task.

        Args:
            patience: seconds that rank 0 waits for the answer.

        Raises:
            UserError: rank 0 cannot be reached, or has continued without this rank.
        """
        self.allow(2 * patience)
        self._heard += 1
        with self._reached():
            self.rendezvous.post(f"words/{self._heard}/{self.rank}", word)
            task = self.rendezvous.read(f"tasks/{self._heard}/{self.rank}", 2 * patience)
        if task is None:
            raise self._lost("no answer")
        if task == LATE:
            raise UserError(f"{self._who} came too late to {step}, and the others began: see what rank 0 says.")
        return task

    def close(self, code: int) -> int:
        """Rank 0's exit code, on all ranks; rank 0, which keeps the store, leaves last."""
        self.allow(END_S)
        try:
            if self.rank:
                agreed = self.rendezvous.read("end", END_S)
                self.rendezvous.post(f"left/{self.rank}", True)
                return 1 if agreed is None else agreed
            self.rendezvous.post("end", code)
            self._collect("left", self.living[1:], SLACK_S)
        except ConnectionError:
            pass
        finally:
            self._guard.cancel()
        return code

    def _collect(self, step: str, ranks: list[int], patience: float) -> dict[int, Any]:
        deadline = time.monotonic() + patience
        words: dict[int, Any] = {}
        while len(words) < len(ranks) and time.monotonic() < deadline:
            time.sleep(POLL_S)
            missing = (rank for rank in ranks if rank not in words)
            found = {rank: self.rendezvous.peek(f"{step}/{rank}") for rank in missing}
            words |= {rank: word for rank, word in found.items() if word is not None}
        return words

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raises `UserError` if the store is gone."""
        try:
            yield
        except ConnectionError as error:
            raise self._lost(str(error)) from None

    def _lost(self, reason: str) -> UserError:
        return UserError(
            f"{self._who} does not reach {self._rank_0} ({reason}): check that its node is up and that port is open."
        )

    def allow(self, patience: float) -> None:
        """End this process unless called again in time: in a broken network, some waits never end by themselves."""
        self._guard.cancel()
        self._guard = threading.Timer(patience + SLACK_S, self._give_up)
        self._guard.daemon = True
        self._guard.start()

    def _give_up(self) -> None:
        # Not by `logging`: the stuck main thread may hold its lock, and the sentence names the rank already.
        print(f"mvlm: {self._lost('no answer')}", file=sys.stderr, flush=True)
        os._exit(UserError.exit_code)
