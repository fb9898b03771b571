"""Where ranks meet before there is a process group: a store, at MASTER_ADDR and MASTER_PORT."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from typing import Any

import torch.distributed as torch_dist

from mvlm.errors import ExitCode, UserError, first_line
from mvlm.runtime.launch import environment

JOINING_S = 900.0
"""Seconds by which ranks' starts may differ; on hundreds of nodes their imports wait for one file server."""
HEARING_S = 5.0


class RanksApart(UserError):
    """Not all ranks have joined: the run is to be started again, perhaps on other nodes or with another port."""

    exit_code = ExitCode.REQUEUE


def gather_ranks() -> torch_dist.Store:
    """The store, once all ranks have reached it. Otherwise a rank that never starts would hold up all for `TIMEOUT`."""
    host, port = store_address()
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))  # DeepSpeed reads them
    address = f"{host}:{port}"
    try:
        rendezvous = Rendezvous(JOINING_S)
    except ConnectionError as error:
        if environment()["rank"] == 0:
            raise RanksApart(
                f"{address} cannot be opened ({error}): give the launcher another port, as deepspeed --master_port."
            ) from None
        raise RanksApart(
            f"Rank 0 cannot be reached at {address} ({error}): see how its log ends, and start the same command again."
        ) from None
    try:
        absent = rendezvous.assemble(JOINING_S)
    except ConnectionError as error:
        raise RanksApart(f"Rank 0 at {address} is gone ({error}): see how its log ends.") from None
    if absent:
        named = ", ".join(map(str, absent[:8])) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
        raise RanksApart(
            f"Of {rendezvous.world} ranks these have not reached {address} within {JOINING_S:.0f} s: {named}; see how "
            "their logs end, and start the same command again."
        )
    return rendezvous.store


def store_address() -> tuple[str, int]:
    """Host and port of the store that all ranks reach."""
    return os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))


class Rendezvous:
    """Where ranks leave messages for each other without a process group, so that none waits for one that is dead.

    Rank 0 keeps the store, unless the launcher has one already.

    Args:
        patience: seconds in which the store must be found.

    Raises:
        ConnectionError: the store cannot be reached, or its port is taken.
    """

    def __init__(self, patience: float) -> None:
        self.rank, self.world = environment()["rank"], environment()["world"]
        kept_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        try:
            store = torch_dist.TCPStore(
                *store_address(),
                is_master=self.rank == 0 and not kept_by_launcher,
                timeout=timedelta(seconds=patience),
                wait_for_workers=False,
            )
        except torch_dist.DistError as error:
            raise ConnectionError(first_line(error)) from None
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = torch_dist.PrefixStore(f"rendezvous/{attempt}", store)

    def assemble(self, patience: float) -> list[int]:
        """Wait for all ranks; returns those that have not come within so many seconds, the same on each that has.

        Raises:
            ConnectionError: the store is gone.
        """
        self.post(f"here/{self.rank}", True)
        if self.rank == 0:
            deadline, absent = time.monotonic() + patience, []
            for rank in range(self.world):
                if not self.read(f"here/{rank}", max(deadline - time.monotonic(), 0.001)):
                    absent.append(rank)
            self.post("absent", absent)
        answer: list[int] | None = self.read("absent", 2 * patience)
        if answer is None:
            raise ConnectionError("no answer")
        if answer and self.rank:
            self.post(f"heard/{self.rank}", True)
        elif answer:  # the store ends with this rank
            for rank in set(range(1, self.world)) - set(answer):
                self.read(f"heard/{rank}", HEARING_S)
        return answer

    def post(self, key: str, word: Any) -> None:
        """Leave a message that JSON can hold.

        Raises:
            ConnectionError: the store is gone.
        """
        try:
            self.store.set(key, json.dumps(word))
        except torch_dist.DistError as error:
            raise ConnectionError(first_line(error)) from None

    def read(self, key: str, patience: float) -> Any:
        """The message left there within so many seconds, however slowly the store answers; None if there is none.

        Raises:
            ConnectionError: the store is gone.
        """
        try:
            self.store.wait([key], timedelta(seconds=patience))
        except torch_dist.DistStoreError:
            pass  # a timeout, perhaps only of the store's answer, though the message has long been there
        except torch_dist.DistError as error:
            raise ConnectionError(first_line(error)) from None
        return self.peek(key)

    def peek(self, key: str) -> Any:
        """The message that is there now, or None.

        Raises:
            ConnectionError: the store is gone.
        """
        try:
            return json.loads(self.store.get(key)) if self.store.check([key]) else None
        except torch_dist.DistError as error:
            raise ConnectionError(first_line(error)) from None
