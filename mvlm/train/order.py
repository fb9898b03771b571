"""The order of samples that a run goes on in: its state's, and from the next epoch on its configuration's."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvlm.config import Data
from mvlm.data.sampler import OrderSpec, order_of, resumed
from mvlm.train.state import TrainState

SETTINGS = ("shuffle_block", "shuffle_window", "shuffle_shards")
"""Of `Data`, those that decide the order; the seed, the shards and their weights may not change within a run."""


def settle_order(state: TrainState, data: Data, per_epoch: int) -> tuple[TrainState, str]:
    """The state with the orders from its position on, and a sentence where its configuration changes them."""
    order, change = resumed(state.order, order_of(data), state.samples_seen, per_epoch)
    return replace(state, order=order), change


def with_stored_order(state: TrainState, checkpoint: Path) -> TrainState:
    """A state of before orders were recorded has the one of the configuration stored with its run, if that is there."""
    if state.order:
        return state
    return replace(state, order=_stored_order(checkpoint.parent.parent / "config.toml"))


def _stored_order(config: Path) -> tuple[OrderSpec, ...]:
    try:
        table: dict[str, Any] = tomllib.loads(config.read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError):
        return ()
    return (order_of(Data(**{name: table[name] for name in SETTINGS if name in table})),)
