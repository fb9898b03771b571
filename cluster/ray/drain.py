"""Lets ranks save before Ray Train takes their workers away on purpose.

Ray Train ends the workers at once when it resizes their group, and everything since the last checkpoint would be
repeated. Its public callbacks are not told of it; this one is of its developers' interface, as of Ray 2.60.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import PreemptingState, ResizingState

from cluster.watch import PATIENCE


class DrainBeforeResize(ControllerCallback):
    """Args: group: handle of the actor `ray_group.Group`."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Wait for the ranks before a resize; do not wait before a node is taken away, which Ray does itself."""
        if isinstance(current_state, ResizingState):
            ray.get(self._group.drain.remote("nodes have come or gone", PATIENCE))
        elif isinstance(current_state, PreemptingState) and not isinstance(previous_state, PreemptingState):
            self._group.drain.remote("a node is about to go", PATIENCE)
