"""The order of samples that a run goes on in: its state's, and from the next epoch on its configuration's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mvlm.checkpoint.description import CONFIG, described_in
from mvlm.checkpoint.state import OrderSpec, TrainState
from mvlm.config.schema import Data, load_stored_config
from mvlm.data.loading.sampler import order_of, resumed
from mvlm.errors import UserError


def settle_order(state: TrainState, data: Data, per_epoch: int) -> tuple[TrainState, str]:
    """The state with the orders from its position on, and a sentence where its configuration changes them."""
    order, change = resumed(state.order, order_of(data), state.samples_seen, per_epoch)
    return replace(state, order=order), change


def with_stored_order(state: TrainState, checkpoint: Path) -> TrainState:
    """A state of before orders were recorded has the one of the configuration stored with its run, if that is there."""
    if state.order:
        return state
    return replace(state, order=_stored_order(checkpoint))


def _stored_order(checkpoint: Path) -> tuple[OrderSpec, ...]:
    try:
        return (order_of(load_stored_config(described_in(checkpoint) / CONFIG).data),)
    except UserError:
        return ()
