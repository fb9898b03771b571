"""Ranks and what they exchange, which is the identity in a world of one.

Tensors travel over the backend of their own device: gloo for CPU tensors, NCCL for CUDA tensors, so a
host-side exchange never waits for the GPU.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor

from mvlm.errors import UserError, first_line
from mvlm.runtime.launch import environment
from mvlm.runtime.rendezvous import Rendezvous, gather_ranks

Found = TypeVar("Found")

TIMEOUT = timedelta(minutes=30)
LARGE = 64
"""From so many ranks on, gloo connects two when one first has something for the other. By default it connects all with
all, for which each rank reads every other's address, whose length grows with the ranks, from the one store. With fewer
ranks that costs little, and each hears of any other's end at once, not through its partners."""


def init(ranks: int | None = None) -> None:
    """Join the process group of the launcher's ranks, or of the first `ranks` of them.

    Raises:
        RanksApart: some did not join, or they do not reach each other.
    """
    given = environment()
    world = ranks or given["world"]
    os.environ.update(RANK=str(given["rank"]), LOCAL_RANK=str(given["local_rank"]), WORLD_SIZE=str(world))
    if torch_dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if uses_cuda() else "gloo"
    # A rank alone keeps its store in its own memory: it needs no port, which a neighbour could hold.
    store = torch_dist.HashStore() if world == 1 else gather_ranks()
    store.set_timeout(TIMEOUT)
    _connect_as_needed(world)
    if uses_cuda():
        torch.cuda.set_device(device())
    torch_dist.init_process_group(backend, store=store, rank=given["rank"], world_size=world, timeout=TIMEOUT)


def _connect_as_needed(world: int) -> None:
    if world >= LARGE:
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")


@contextmanager
def group(rendezvous: Rendezvous, name: str, ranks: Sequence[int], patience: float) -> Iterator[None]:
    """Form a process group of these ranks alone, which the functions here then use within the block.

    Args:
        name: that no other group has.
        patience: seconds after which joining, and what is exchanged, fails with a RuntimeError.
    """
    backend = "gloo"
    if uses_cuda():
        backend = "cpu:gloo,cuda:nccl"
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # raises an error, as gloo does, instead of ending the process
        torch.cuda.set_device(device())
    _connect_as_needed(len(ranks))
    torch_dist.init_process_group(
        backend,
        store=torch_dist.PrefixStore(name, rendezvous.store),
        rank=ranks.index(rendezvous.rank),
        world_size=len(ranks),
        timeout=timedelta(seconds=patience),
    )
    try:
        yield
    finally:
        close()


def close() -> None:
    _groups.clear()
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


def device_named(name: torch.device | str | None) -> torch.device:
    """The device of that name; without a name, this rank's accelerator, or the CPU.

    Raises:
        UserError: this machine has none of that name.
    """
    if not name:
        return device()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises the latter if it was built without CUDA
        raise UserError(
            f'There is no device "{name}" here ({first_line(error)}): give another, such as "cpu".'
        ) from None


def pci_address() -> str:
    """The address of this rank's GPU as Linux writes it, such as "0000:dc:00.0"."""
    of_gpu: Any = torch.cuda.get_device_properties(device())  # torch's stubs lack these
    return f"{of_gpu.pci_domain_id:04x}:{of_gpu.pci_bus_id:02x}:{of_gpu.pci_device_id:02x}.0"


def all_gather(tensor: Tensor) -> Tensor:
    """Concatenate equally shaped tensors of all ranks along the first dimension, in rank order, without gradient."""
    return gather_from(tensor, range(world()))


def gather_from(tensor: Tensor, ranks: Sequence[int]) -> Tensor:
    """The same for these ranks, this one among them, in this order."""
    if len(ranks) == 1:
        return tensor.detach()
    tensor = tensor.detach().contiguous()
    gathered = tensor.new_empty(len(ranks) * tensor.shape[0], *tensor.shape[1:])
    torch_dist.all_gather_into_tensor(gathered, tensor, None if len(ranks) == world() else group_of(ranks))
    return gathered


def group_of(ranks: Sequence[int]) -> torch_dist.ProcessGroup:
    """The group of these ranks, this one among them, which is formed at the first call."""
    if (key := tuple(ranks)) not in _groups:
        _groups[key] = torch_dist.new_group(list(key), timeout=TIMEOUT, use_local_synchronization=True)
    return _groups[key]


_groups: dict[tuple[int, ...], torch_dist.ProcessGroup] = {}


def all_reduce(tensor: Tensor, op: str = "sum", group: torch_dist.ProcessGroup | None = None) -> Tensor:
    """Reduce over ranks, or a group of them, by "sum" or "max", into a new tensor."""
    reduced = tensor.detach().clone()
    if world() > 1:
        torch_dist.all_reduce(reduced, {"sum": torch_dist.ReduceOp.SUM, "max": torch_dist.ReduceOp.MAX}[op], group)
    return reduced


def broadcast_object(value: Any, source: int = 0) -> Any:
    """The `value` of rank 0, or another, on every rank."""
    if world() == 1:
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=source, device=torch.device("cpu"))
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """The `value` of every rank, in rank order, on every rank."""
    if world() == 1:
        return [value]
    gathered: list[Any] = [None] * world()
    torch_dist.all_gather_object(gathered, value)
    return gathered


def gather_on_rank_0(value: Any) -> list[Any]:
    """The `value` of every rank, in rank order, on rank 0; nothing on the others."""
    gathered: list[Any] = [value] * world() if rank() == 0 else []
    if world() > 1:
        torch_dist.gather_object(value, gathered or None)
    return gathered


def scatter_from_rank_0(values: Sequence[Any]) -> Any:
    """Give every rank its own of rank 0's `values`, one for each; those of other ranks are ignored."""
    if world() == 1:
        return values[0]
    own: list[Any] = [None]
    torch_dist.scatter_object_list(own, list(values) if rank() == 0 else None)
    return own[0]


def hand_on(value: Any) -> Any:
    """The `value` of the previous rank, on the first that of the last; all ranks must call."""
    if world() == 1:
        return value
    own = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    size = _shifted(torch.tensor([len(own)]), torch.zeros(1, dtype=torch.int64))
    return pickle.loads(_shifted(own, own.new_empty(int(size))).numpy().tobytes())


def _shifted(own: Tensor, arriving: Tensor) -> Tensor:
    """Send a CPU tensor to the next rank, and receive that of the previous one."""
    sending = torch_dist.isend(own, (rank() + 1) % world())
    torch_dist.recv(arriving, (rank() - 1) % world())
    assert sending
    sending.wait()
    return arriving


def all_agree(here: bool) -> bool:
    """Whether `here` is so on every rank; all ranks must call."""
    return int(all_reduce(torch.tensor(int(here)))) == world()


def send(tensor: Tensor, receiver: int, tag: int) -> None:
    """Send a CPU tensor to another rank, which must `receive` it; any thread may. A tag tells such messages apart."""
    torch_dist.send(tensor, receiver, tag=tag)


def receive(tensor: Tensor, sender: int, tag: int) -> None:
    """Wait for what another rank sends, and fill a CPU tensor of its size with it."""
    torch_dist.recv(tensor, sender, tag=tag)


def barrier() -> None:
    if world() > 1:
        torch_dist.barrier()


def lost_peer(error: BaseException) -> bool:
    """Whether this is what a collective raises when another rank has died or fallen silent."""
    if isinstance(error, (torch_dist.DistBackendError, torch_dist.DistNetworkError, torch_dist.DistStoreError)):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and "gloo" in words and ("onnection" in words or "imed out" in words)


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


def try_on_all(act: Callable[[], object]) -> None:
    """Have every rank act; if any meets a mistake, all raise the first one, and nothing else is exchanged."""
    mistake: UserError | None = None
    try:
        act()
    except UserError as error:
        mistake = error
    first = -int(all_reduce(torch.tensor(-rank() if mistake else -world()), "max"))
    if first < world():
        raise broadcast_object(mistake, first)


def on_all(act: Callable[[], Found]) -> list[Found]:
    """What every rank finds, in rank order; if any meets a mistake, all raise the first one."""
    found: Found | UserError
    try:
        found = act()
    except UserError as error:
        found = error
    everything = gather_objects(found)
    if mistake := next((each for each in everything if isinstance(each, UserError)), None):
        raise mistake
    return everything
