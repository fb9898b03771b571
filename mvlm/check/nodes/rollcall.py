"""Steps that all ranks take together, none of which a dead one can hold up."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from mvlm.errors import UserError
from mvlm.runtime.rendezvous import Rendezvous, store_address

SLACK_S = 5.0
END_S = 30.0  # for rank 0 to write what it has found
POLL_S = 0.02


class RollCall:
    """Asks every rank for a word, and continues with those that give one in time.

    Args:
        host: this rank's.
        patience: seconds that all ranks have to come.

    Raises:
        UserError: rank 0 is not to be reached.
    """

    def __init__(self, host: str, patience: float) -> None:
        host_0, port = store_address()
        self._who = f"rank {os.environ.get('RANK', '0')} on {host}"
        self._rank_0 = f"rank 0 at {host_0}:{port}"
        self._guard = threading.Timer(0, self._give_up)
        self.allow(patience)
        try:
            self.rendezvous = Rendezvous(patience)
        except ConnectionError as error:
            raise self._lost(str(error)) from None
        self.rank, self.living = self.rendezvous.rank, list(range(self.rendezvous.world))

    def call(self, step: str, word: Any, patience: float) -> dict[int, Any]:
        """The words of all ranks that gave theirs, the same on each of them; those that gave none are asked no more.

        Args:
            patience: seconds that rank 0, which has given its own word, waits for the others.

        Raises:
            UserError: rank 0 is not to be reached, or has continued without this rank.
        """
        self.allow(2 * patience)
        try:
            self.rendezvous.post(f"{step}/{self.rank}", word)
            if self.rank == 0:
                self.rendezvous.post(f"{step}/all", self._collect(step, self.living, patience))
            answers = self.rendezvous.read(f"{step}/all", 2 * patience)
        except ConnectionError as error:
            raise self._lost(str(error)) from None
        if answers is None:
            raise self._lost("no answer")
        heard = {int(rank): answer for rank, answer in answers.items()}
        if self.rank not in heard:
            raise UserError(f"{self._who} came too late to {step}, and the others began: see what rank 0 says of it.")
        self.living = sorted(heard)
        return heard

    def close(self, code: int) -> int:
        """Rank 0's exit code, on all; rank 0, who keeps the store, leaves last."""
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

    def _lost(self, reason: str) -> UserError:
        return UserError(
            f"{self._who} does not reach {self._rank_0} ({reason}): see that its node is up and that port open."
        )

    def allow(self, patience: float) -> None:
        """End this process unless it comes here again soon: some waits in a broken network know no end of their own."""
        self._guard.cancel()
        self._guard = threading.Timer(patience + SLACK_S, self._give_up)
        self._guard.daemon = True
        self._guard.start()

    def _give_up(self) -> None:
        # Not by `logging`: the main thread is stuck, perhaps with its lock, and the sentence names the rank itself.
        print(f"mvlm: {self._lost('no answer')}", file=sys.stderr, flush=True)
        os._exit(UserError.exit_code)
