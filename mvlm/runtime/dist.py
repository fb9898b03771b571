"""Ranks and what they exchange; the identity in a world of one.

Tensors travel over the backend of their own device: gloo for CPU tensors, NCCL for CUDA tensors, so a
host-side exchange never waits for the GPU.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor

from mvlm.errors import ExitCode, UserError
from mvlm.runtime.launch import environment

Found = TypeVar("Found")

TIMEOUT = timedelta(minutes=30)
JOINING_S = 900.0
"""That ranks may start apart; on hundreds of nodes their imports wait for one file server."""
HEARING_S = 5.0


class RanksApart(UserError):
    """The ranks have not come together: the run is to be started again, which may be on other nodes or another port."""

    exit_code = ExitCode.REQUEUE


def init(ranks: int | None = None) -> None:
    """Join the process group of the launcher's ranks, or of the first `ranks` of them.

    Raises:
        RanksApart: some have not come, or they do not reach each other.
    """
    given = environment()
    world = ranks or given["world"]
    os.environ.update(RANK=str(given["rank"]), LOCAL_RANK=str(given["local_rank"]), WORLD_SIZE=str(world))
    if torch_dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if uses_cuda() else "gloo"
    # A rank alone meets itself in its own memory: no port that a neighbour could hold.
    store = torch_dist.HashStore() if world == 1 else _come_together()
    store.set_timeout(TIMEOUT)
    if uses_cuda():
        torch.cuda.set_device(device())
    torch_dist.init_process_group(backend, store=store, rank=given["rank"], world_size=world, timeout=TIMEOUT)


def _come_together() -> torch_dist.Store:
    """The store that all ranks have come to. Without this a rank that never starts holds the others for `TIMEOUT`."""
    host, port = meeting_place()
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))  # DeepSpeed looks for them
    address = f"{host}:{port}"
    try:
        meeting = Meeting(JOINING_S)
    except ConnectionError as error:
        if environment()["rank"] == 0:
            raise RanksApart(
                f"{address} cannot be opened ({error}): give the launcher another port, as deepspeed --master_port."
            ) from None
        raise RanksApart(
            f"Rank 0 is not to be reached at {address} ({error}): see how its log ends, and start the same command "
            "again."
        ) from None
    try:
        absent = meeting.assemble(JOINING_S)
    except ConnectionError as error:
        raise RanksApart(f"Rank 0 at {address} is gone ({error}): see how its log ends.") from None
    if absent:
        named = ", ".join(map(str, absent[:8])) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
        raise RanksApart(
            f"Of {meeting.world} ranks these have not come to {address} within {JOINING_S:.0f} s: {named}; see how "
            "their logs end, and start the same command again."
        )
    return meeting.store


def meeting_place() -> tuple[str, int]:
    """Host and port of the store that all ranks come to."""
    return os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))


def close() -> None:
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def rank() -> int:
    return torch_dist.get_rank() if torch_dist.is_initialized() else 0


def world() -> int:
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def uses_cuda() -> bool:
    """Whether tensors belong on a GPU: there is one, and DeepSpeed was not told to leave it alone."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def device() -> torch.device:
    """This rank's accelerator, or the CPU."""
    if uses_cuda():
        return torch.device("cuda", environment()["local_rank"] % torch.cuda.device_count())
    return torch.device("cpu")


def all_gather(tensor: Tensor) -> Tensor:
    """Concatenate equally shaped tensors of all ranks along the first dimension, in rank order, without gradient."""
    if world() == 1:
        return tensor.detach()
    tensor = tensor.detach().contiguous()
    gathered = tensor.new_empty((world() * tensor.shape[0], *tensor.shape[1:]))
    torch_dist.all_gather_into_tensor(gathered, tensor)
    return gathered


def all_reduce(tensor: Tensor, op: str = "sum") -> Tensor:
    """Reduce over ranks by "sum" or "max", into a new tensor."""
    reduced = tensor.detach().clone()
    if world() > 1:
        torch_dist.all_reduce(reduced, {"sum": torch_dist.ReduceOp.SUM, "max": torch_dist.ReduceOp.MAX}[op])
    return reduced


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    if world() == 1:
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """The `value` of every rank, in rank order, on every rank."""
    if world() == 1:
        return [value]
    gathered: list[Any] = [None] * world()
    torch_dist.all_gather_object(gathered, value)
    return gathered


def barrier() -> None:
    if world() > 1:
        torch_dist.barrier()


def lost_peer(error: BaseException) -> bool:
    """Whether this is what a collective raises when another rank has died or fallen silent."""
    if isinstance(error, (torch_dist.DistBackendError, torch_dist.DistNetworkError, torch_dist.DistStoreError)):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and "gloo" in words and ("onnection" in words or "imed out" in words)


class Meeting:
    """Where the ranks leave word for each other without a process group, so that none waits for one that is dead.

    It is a store at MASTER_ADDR and MASTER_PORT, kept by rank 0 or by the launcher that has one there.

    Args:
        patience: seconds in which the store must be found.

    Raises:
        ConnectionError: there is no way to the store, or its port is taken.
    """

    def __init__(self, patience: float) -> None:
        self.rank, self.world = environment()["rank"], environment()["world"]
        kept_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        try:
            store = torch_dist.TCPStore(
                *meeting_place(),
                is_master=self.rank == 0 and not kept_by_launcher,
                timeout=timedelta(seconds=patience),
                wait_for_workers=False,
            )
        except torch_dist.DistError as error:
            raise ConnectionError(str(error).splitlines()[0]) from None
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = torch_dist.PrefixStore(f"meeting/{attempt}", store)

    def assemble(self, patience: float) -> list[int]:
        """Wait for all ranks; those that have not come within so many seconds, the same on each that has.

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
        elif answer:  # the store goes when this rank ends
            for rank in set(range(1, self.world)) - set(answer):
                self.read(f"heard/{rank}", HEARING_S)
        return answer

    def post(self, key: str, word: Any) -> None:
        """Leave a word that JSON can hold.

        Raises:
            ConnectionError: the store is gone.
        """
        try:
            self.store.set(key, json.dumps(word))
        except torch_dist.DistError as error:
            raise ConnectionError(str(error).splitlines()[0]) from None

    def read(self, key: str, patience: float) -> Any:
        """The word that is left there within so many seconds, however slow the store's answer is; None when none is.

        Raises:
            ConnectionError: the store is gone.
        """
        try:
            self.store.wait([key], timedelta(seconds=patience))
        except torch_dist.DistStoreError:
            pass  # out of time for the store's answer, too, with the word perhaps long there
        except torch_dist.DistError as error:
            raise ConnectionError(str(error).splitlines()[0]) from None
        return self.peek(key)

    def peek(self, key: str) -> Any:
        """The word that is there now, or None.

        Raises:
            ConnectionError: the store is gone.
        """
        try:
            return json.loads(self.store.get(key)) if self.store.check([key]) else None
        except torch_dist.DistError as error:
            raise ConnectionError(str(error).splitlines()[0]) from None

    @contextmanager
    def group(self, name: str, ranks: Sequence[int], patience: float) -> Iterator[None]:
        """Be for a while in a process group of these ranks alone, which the functions above then speak of.

        Args:
            name: of no other group.
            patience: seconds after which joining, and what is exchanged, fails with a RuntimeError.
        """
        backend = "gloo"
        if uses_cuda():
            backend = "cpu:gloo,cuda:nccl"
            os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # an error, as gloo's, where it would end the process
            torch.cuda.set_device(device())
        torch_dist.init_process_group(
            backend,
            store=torch_dist.PrefixStore(name, self.store),
            rank=ranks.index(self.rank),
            world_size=len(ranks),
            timeout=timedelta(seconds=patience),
        )
        try:
            yield
        finally:
            close()


def as_rank_0(ask: Callable[[], Found]) -> Found:
    """What rank 0 finds, or the mistake it meets, on every rank."""
    answer: Found | UserError | None = None
    if rank() == 0:
        try:
            answer = ask()
        except UserError as error:
            answer = error
    answer = broadcast_object(answer)
    if isinstance(answer, UserError):
        raise answer
    return answer


def on_all(act: Callable[[], Found]) -> list[Found]:
    """What every rank finds, in their order; where any meets a mistake, all raise the first."""
    found: Found | UserError
    try:
        found = act()
    except UserError as error:
        found = error
    everything = gather_objects(found)
    if mistake := next((each for each in everything if isinstance(each, UserError)), None):
        raise mistake
    return everything
