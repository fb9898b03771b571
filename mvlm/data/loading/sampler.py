"""The order in which each epoch of a run is drawn: part of its state, so that an epoch ends in the one it began in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from mvlm.checkpoint.state import BLOCKS, GLOBAL, SHARDS, OrderSpec
from mvlm.config.schema import Data
from mvlm.data.loading.order import MixtureSampler, scattered
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from mvlm.runtime.disk import why_slow


class Sampler(Protocol):
    """Maps positions to the numbers drawn there and to occurrences, as `MixtureSampler` does."""

    per_epoch: int

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


class SuccessiveSampler:
    """Draws each epoch in the order that applies to it.

    Args:
        samplers: with equally many draws per epoch, each with the first of its epochs, ascending. The first one also
            has all epochs before.
    """

    def __init__(self, samplers: Sequence[tuple[int, Sampler]]):
        self._first_epochs = np.array([epoch for epoch, _ in samplers[1:]], dtype=np.int64)
        self._samplers = [sampler for _, sampler in samplers]
        self.per_epoch = self._samplers[0].per_epoch

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 positions [n] -> rows and occurrences, both int64 [n]."""
        owners = self._first_epochs.searchsorted(positions // self.per_epoch, side="right")
        rows, occurrences = np.empty_like(positions), np.empty_like(positions)
        for owner in np.unique(owners).tolist():
            mine = owners == owner
            rows[mine], occurrences[mine] = self._samplers[owner](positions[mine])
        return rows, occurrences


class ScatteredSampler:
    """Renumbers the pairs of each shard, so that those of one image are not neighbours in a block.

    Args:
        sampler: of pairs.
        starts: int64, the first pair of each shard, then the number of pairs.
        seed: any integer; the numbers are a function of it alone.
    """

    def __init__(self, sampler: Sampler, starts: np.ndarray, seed: int):
        self._sampler, self._starts, self._seed = sampler, starts, seed
        self.per_epoch = sampler.per_epoch

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 positions [n] -> pairs and occurrences, both int64 [n]."""
        pairs, occurrences = self._sampler(positions)
        shard = self._starts.searchsorted(pairs, side="right") - 1
        first = self._starts[shard]
        return first + scattered(pairs - first, self._starts[shard + 1] - first, self._seed, shard), occurrences


AUTO = "auto"


def reason_for_blocks(data: Data) -> str:
    """Why "auto" means blocks of rows on this node; "" if it means a global shuffle."""
    if data.shuffle != AUTO:
        return ""
    if data.shuffle_shards:
        return "data.shuffle_shards asks for whole shards"
    return next(filter(None, map(why_slow, data.train)), "")


def settle_shuffle(data: Data, reasons: Sequence[str]) -> tuple[Data, str]:
    """The configuration with what "auto" means, settled once when a run begins, and a sentence that says so.

    Args:
        reasons: from `reason_for_blocks`, on each rank.
    """
    if data.shuffle != AUTO:
        return data, ""
    if why := next(filter(None, reasons), ""):
        settled = replace(data, shuffle=BLOCKS)
        return settled, f"The order of the samples is {order_of(settled)}, since {why} (data.shuffle)."
    return replace(data, shuffle=GLOBAL), "The order of the samples is a global shuffle (data.shuffle)."


def order_of(data: Data) -> OrderSpec:
    """The order that a configuration asks for; an unsettled "auto" is a global shuffle."""
    if data.shuffle_shards:
        return OrderSpec(SHARDS, {"window": data.shuffle_shards})
    if data.shuffle != BLOCKS:
        return OrderSpec(GLOBAL)
    return OrderSpec(BLOCKS, {"block": data.shuffle_block, "window": data.shuffle_window})


def make_sampler(mixture: Mixture, seed: int, orders: Sequence[OrderSpec]) -> Sampler:
    """The sampler of a mixture, in each of these orders from its epoch on.

    Raises:
        UserError: the shards at URLs that are shuffled together do not fit into the cache.
    """
    samplers = [(order.from_epoch, _in_order(mixture, seed, order, ends=order is not orders[-1])) for order in orders]
    return SuccessiveSampler(samplers) if len(samplers) > 1 else samplers[0][1]


def _in_order(mixture: Mixture, seed: int, order: OrderSpec, ends: bool) -> Sampler:
    """The sampler for one order, which `ends` with the running epoch if that cannot be given another."""
    numbers = mixture.numbers
    if order.kind == GLOBAL:
        _check_cache(mixture, 0, ends)
        return MixtureSampler(numbers.sizes, mixture.weights, seed)
    window = order.parameters["window"]
    if order.kind == BLOCKS:
        _check_cache(mixture, 0, ends)
        sampler = MixtureSampler(numbers.sizes, mixture.weights, seed, order.parameters["block"], window)
    else:
        _check_cache(mixture, window, ends)
        shards = numbers.counts_by_shard()
        per_shard = max(1, sum(numbers.sizes) // sum(map(len, shards)))
        sampler = MixtureSampler(numbers.sizes, mixture.weights, seed, per_shard, window, shards)
    return ScatteredSampler(sampler, numbers.starts, seed) if numbers.pairs else sampler


def _check_cache(mixture: Mixture, shuffle_shards: int, ends: bool) -> None:
    remote = [shard.bytes for c in mixture.corpora if c.location.cached for shard in c.manifest.shards]
    wanted = sum(sorted(remote)[-2 * shuffle_shards :])  # of this window and the next; of all if it is 0
    if wanted > mixture.cache.capacity:
        needed = "All shards at URLs"
        if shuffle_shards:
            needed = f"The {shuffle_shards} shards shuffled together and those after them"
        remedy = "raise that, or set data.shuffle_shards to fewer"
        if ends:
            remedy = "raise that until the running epoch, which keeps its order, has ended"
        raise UserError(
            f"{needed} have {wanted / 1e9:.3g} GB and data.cache_gb is {mixture.cache.capacity / 1e9:.3g}: {remedy}."
        )


def resumed(
    orders: Sequence[OrderSpec], wanted: OrderSpec, position: int, per_epoch: int
) -> tuple[tuple[OrderSpec, ...], str]:
    """The orders from a position on, and a sentence if the order wanted now is not the one the run has been drawn in.

    Args:
        orders: of the run until now, in sequence; none = it begins.
        wanted: applies from the first epoch that has not begun.
        position: samples seen.
        per_epoch: draws per epoch.
    """
    epoch, within = divmod(position, per_epoch)
    upcoming = epoch + bool(within)
    begun = [order for order in orders if order.from_epoch < upcoming]
    if not begun:
        return (replace(wanted, from_epoch=upcoming),), ""
    running = begun[-1]
    if running.is_like(wanted):
        return (running,), ""
    following = replace(wanted, from_epoch=upcoming)
    change = f"The order of the samples changes with epoch {upcoming}, from {running} to {wanted}"
    if not within:
        return (following,), f"{change}."
    return (running, following), f"{change}; epoch {epoch}, which has begun, ends as it began."
