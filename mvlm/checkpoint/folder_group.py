"""Which ranks see the same run folder: all of them on a shared disk, those of one node on a disk of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mvlm.errors import UserError, cannot_write
from mvlm.runtime import dist

PATIENCE_S = 5.0  # for a network file system to show one node what another has written
NAMED = 8  # hosts that an error message names

Item = TypeVar("Item")


@dataclass(frozen=True)
class FolderGroup:
    """The ranks, in order, that see the same run folder as this one."""

    ranks: tuple[int, ...]

    @classmethod
    def of_all(cls) -> FolderGroup:
        return cls(tuple(range(dist.world())))

    @property
    def is_whole(self) -> bool:
        """Whether one run folder is seen by all ranks."""
        return len(self.ranks) == dist.world()

    @property
    def leads(self) -> bool:
        """Whether this rank does what only one rank of the group may do."""
        return dist.rank() == self.ranks[0]

    def share(self, items: list[Item]) -> list[Item]:
        """This rank's share of work that the ranks of the group divide among themselves."""
        return items[self.ranks.index(dist.rank()) :: len(self.ranks)]


def find_folder_group(run: Path, mirrored: bool) -> FolderGroup:
    """Find out by having each rank leave a token in the run folder, which is created; all ranks must call.

    Args:
        mirrored: checkpoints go to a mirror, so that nodes may have folders of their own.

    Raises:
        UserError: the folder cannot be written, or is not the same everywhere and there is no mirror.
    """
    if dist.world() == 1:
        return FolderGroup.of_all()
    tokens = run / f".seen-{dist.broadcast_object(secrets.token_hex(8))}"
    dist.try_on_all(lambda: _leave_token(run, tokens))
    seen = _look(tokens)
    has_one_folder = dist.all_agree(len(seen) == dist.world())  # also a barrier: all have looked
    if dist.rank() == min(seen):
        shutil.rmtree(tokens, ignore_errors=True)
    return FolderGroup.of_all() if has_one_folder else _find_among_several(run, mirrored, seen)


def _find_among_several(run: Path, mirrored: bool, seen: set[int]) -> FolderGroup:
    """This rank's group if not all ranks see each other; raises as `find_folder_group`."""
    told = dist.gather_on_rank_0((socket.gethostname(), seen))
    groups = _connected([ranks for _, ranks in told])

    def refuse() -> None:
        if len(groups) > 1 and not mirrored:
            raise UserError(_refusal(run, [host for host, _ in told], next(ranks for ranks in groups if 0 in ranks)))

    dist.as_rank_0(refuse)
    of_rank = {rank: tuple(sorted(ranks)) for ranks in groups for rank in ranks}
    return FolderGroup(dist.scatter_from_rank_0([of_rank[rank] for rank in sorted(of_rank)]))


def _leave_token(run: Path, tokens: Path) -> None:
    where, remedy = f"rank {dist.rank()} on {socket.gethostname()}: ", "set run.dir to a folder you can write to"
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The run folder {run} cannot be made ({where}{error}): {remedy}.") from None
    try:
        tokens.mkdir(exist_ok=True)
        (tokens / f"{dist.rank():05d}").touch()
    except OSError as error:
        raise cannot_write(f"The run folder {run}", error, remedy, where) from None


def _look(tokens: Path) -> set[int]:
    """The ranks whose tokens are visible, once all are or PATIENCE_S has passed."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        seen = {dist.rank()}
        with contextlib.suppress(OSError):
            seen |= {int(name) for name in os.listdir(tokens)}
        if len(seen) == dist.world() or time.monotonic() > deadline:
            return seen
        time.sleep(0.1)


def _connected(seen: list[set[int]]) -> list[set[int]]:
    """Groups, from what each rank has seen: one that sees another shares its folder, even if not yet seen itself."""
    groups: list[set[int]] = []
    for ranks in seen:
        touching = [group for group in groups if group & ranks]
        groups = [group for group in groups if not group & ranks] + [ranks.union(*touching)]
    return groups


def _refusal(run: Path, hosts: list[str], sees_rank_0: set[int]) -> str:
    first: dict[str, int] = {}
    for rank, host in enumerate(hosts):
        if rank not in sees_rank_0:
            first.setdefault(host, rank)
    named = [f"{host} (rank {rank})" for host, rank in list(first.items())[:NAMED]]
    if len(first) > NAMED:
        named.append(f"{len(first) - NAMED} more hosts")
    return (
        f"The run folder {run} of rank 0 on {hosts[0]} is not the one that is seen on {', '.join(named)}: set run.dir "
        "to a folder that all nodes share, or checkpoint.mirror to a URL that all can reach."
    )
