"""Room for more ranks than there are: placement groups that Ray fills as soon as it can, which an autoscaler sees."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from ..processes import PATIENCE
from .spec import RayJobSpec

LOOK_SECONDS = 1.0
SETTLE_SECONDS = 5.0  # for nodes that come, or are found lost, at about the same time
START_SECONDS = 60.0  # until a job that does not wait for room is given up


class Room:
    """Holds free resources for the ranks of up to so many nodes.

    Args:
        nodes: of the job; Ray decides where their ranks are placed.
    """

    def __init__(self, spec: RayJobSpec, nodes: int) -> None:
        ranks = [spec.resources()] * spec.job.ranks_per_node
        self._groups = [placement_group(ranks, strategy="PACK") for _ in range(nodes)]

    def nodes(self) -> int:
        """How many nodes there is room for now."""
        table = placement_group_table()
        return sum(table.get(group.id.hex(), {}).get("state") == "CREATED" for group in self._groups)

    def release(self) -> None:
        for group in self._groups:
            remove_placement_group(group)
        self._groups = []


def find_room(spec: RayJobSpec, least: int, most: int, waits: bool) -> int:
    """How many nodes there is room for, once there is for the fewest that will do.

    Args:
        waits: for that, however long it takes; otherwise `least` is the answer after a minute.
    """
    room, began = Room(spec, most), time.monotonic()
    try:
        while (nodes := room.nodes()) < most:
            waited = time.monotonic() - began
            if nodes >= least and waited > SETTLE_SECONDS:
                break
            if not waits and waited > START_SECONDS:
                return least
            time.sleep(LOOK_SECONDS)
        return nodes
    finally:
        room.release()


class Growth(threading.Thread):
    """Has the ranks save and end when there is room for more, so that no step is repeated.

    Ray Train ends its workers at once when it resizes a run, and no public callback is told before.
    """

    def __init__(self, spec: RayJobSpec, coordinator: Any, nodes: int) -> None:
        """Args: nodes: how many more the job would have."""
        super().__init__(daemon=True)
        self._spec, self._coordinator, self._nodes, self._over = spec, coordinator, nodes, threading.Event()

    def run(self) -> None:
        if not self._nodes or not self._wait(lambda: ray.get(self._coordinator.is_running.remote())):
            return  # room asked for before Ray Train has its own would take that away
        room = Room(self._spec, self._nodes)
        try:
            if self._wait(lambda: room.nodes() > 0) and not self._over.wait(SETTLE_SECONDS):
                ray.get(self._coordinator.drain.remote("nodes have come", PATIENCE))
        finally:
            room.release()

    def end(self) -> None:
        """Give back what is held for more ranks."""
        self._over.set()
        self.join()

    def _wait(self, reached: Callable[[], bool]) -> bool:
        """Whether `reached` becomes true before the attempt is over."""
        while not reached():
            if self._over.wait(LOOK_SECONDS):
                return False
        return True
