"""Fills the node's cache with the shards that a stream will need, in the order in which it will need them."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

from mvlm.data.loading.sampler import Sampler
from mvlm.data.shards.mixture import Mixture

FETCHERS = 4
"""Shards a rank fetches at a time: one connection seldom saturates the network."""

STRIDE = 4096
"""The most positions planned together. With small shards it is half a shard's rows, since none of the shards is given
up until all the positions have passed."""

LOOK_AGAIN_S = 1.0
"""When to look again: another process may have made room or failed."""


def start_prefetcher(mixture: Mixture, sampler: Sampler, position: int) -> Prefetcher | None:
    """Begin to prefetch; None if no part of the mixture is at a URL."""
    return Prefetcher(mixture, sampler, position) if any(corpus.location.cached for corpus in mixture.corpora) else None


class Prefetcher:
    """Threads that keep the shards of the next positions in the cache, as many as it holds.

    A shard that cannot be fetched is left to whoever reads it, who will be told why.

    Args:
        position: where the stream begins.
    """

    def __init__(self, mixture: Mixture, sampler: Sampler, position: int):
        self._sampler, self._cache = sampler, mixture.cache
        self._cache.outages.given_up = False
        self._locations = [(c.location, number) for c in mixture.corpora for number in range(len(c.manifest.shards))]
        self._starts = mixture.numbers.starts
        self._position = self._looked_to = position
        half_a_shard = int(self._starts[-1]) // len(self._locations) // 2
        self._stride = max(1, min(half_a_shard, STRIDE, sampler.per_epoch))
        self._strides: deque[tuple[int, list[int]]] = deque()  # where each ends, and its shards in order of use
        self._planning = threading.Lock()
        self._moved = threading.Condition()
        self._closed = False
        names = [f"mvlm-data-prefetch-{number}" for number in range(FETCHERS)]
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def at(self, position: int) -> None:
        """Note that everything before `position` has been read."""
        with self._moved:
            self._position = position
            self._moved.notify_all()

    def close(self) -> None:
        """End the threads, each after the shard it is fetching, and all waiting for unreachable stores."""
        self._cache.outages.given_up = True
        with self._moved:
            self._closed = True
            self._moved.notify_all()
        for thread in self._threads:
            thread.join()

    def upcoming(self) -> list[int]:
        """The shards needed next, by number over all corpora, as many as the cache holds."""
        with self._planning:
            while self._strides and self._strides[0][0] <= self._position:
                self._strides.popleft()
            found: dict[int, None] = {shard: None for _, shards in self._strides for shard in shards}
            room = self._cache.capacity - sum(map(self._bytes, found))
            # An epoch needs every shard, so looking further than one would find no others.
            while room > 0 and self._looked_to < self._position + self._sampler.per_epoch:
                self._looked_to += self._stride
                shards = self._shards_at(np.arange(self._looked_to - self._stride, self._looked_to))
                self._strides.append((self._looked_to, shards))
                room -= sum(self._bytes(shard) for shard in shards if shard not in found)
                found |= dict.fromkeys(shards)
        fit = np.cumsum([self._bytes(shard) for shard in found]) <= self._cache.capacity
        return list(found)[: int(fit.sum())]

    def _shards_at(self, positions: np.ndarray) -> list[int]:
        shards = self._starts.searchsorted(self._sampler(positions)[0], side="right") - 1
        different, first = np.unique(shards, return_index=True)
        return [shard for shard in different[np.argsort(first)].tolist() if self._locations[shard][0].cached]

    def _bytes(self, shard: int) -> int:
        location, number = self._locations[shard]
        return location.manifest.shards[number].bytes

    def _run(self) -> None:
        while not self._closed:
            upcoming, position = self.upcoming(), self._position
            shards = [self._locations[shard][0].manifest.shards[self._locations[shard][1]] for shard in upcoming]
            self._cache.touch(shards[::-1])
            for nth, shard in enumerate(upcoming):
                location, number = self._locations[shard]
                if self._closed:
                    return
                if self._cache.holds(shards[nth]):
                    continue
                if location.prefetch(number, shards[:nth]):
                    break  # to look again in a moment
            self._wait_to_pass(position + self._stride)

    def _wait_to_pass(self, position: int) -> None:
        with self._moved:
            self._moved.wait_for(lambda: self._closed or self._position >= position, LOOK_AGAIN_S)
