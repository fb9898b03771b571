"""How long NCCL takes for a collective on the links of given GPUs.

A collective takes its latency plus its bytes over the bandwidth, by the best of NCCL's protocols, with the constants by
which NCCL 2.30 chooses among them (src/graph/tuning.cc): rings for all-gather and reduce-scatter, a tree or a ring for
all-reduce. Links and network reach `ACHIEVED` of their advertised bandwidth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mvlm.estimate.cards import Card

ACHIEVED = 0.8
"""Share of a link's bandwidth that large collectives are assumed to reach."""
MICRO = 1e-6


@dataclass(frozen=True)
class Protocol:
    """One of NCCL's protocols.

    Attributes:
        share: of the bandwidth that it reaches.
        cap: bytes a second between nodes at most.
        ring, tree: microseconds of a collective's start, and of each hop on NVLink, PCI Express and a network.
    """

    share: float
    cap: float
    ring: tuple[float, float, float, float]
    tree: tuple[float, float, float, float]


PROTOCOLS = (
    Protocol(0.5, 20e9, ring=(6.6, 0.6, 1.0, 2.7), tree=(6.8, 0.6, 1.0, 5.0)),
    Protocol(0.92, math.inf, ring=(14.0, 1.9, 2.5, 4.0), tree=(14.0, 1.25, 1.9, 8.5)),
    Protocol(1.0, math.inf, ring=(8.4, 3.4, 5.7, 14.0), tree=(8.4, 4.0, 4.0, 14.0)),
)
"""LL, LL128 and Simple; the constants of LL's bandwidth between nodes are from 19 to 35e9, depending on the CPU."""


@dataclass(frozen=True)
class Fabric:
    """`ranks` GPUs, `per_node` of them in each node."""

    card: Card
    ranks: int
    per_node: int

    @property
    def nodes(self) -> int:
        return math.ceil(self.ranks / self.per_node)

    @property
    def bandwidth(self) -> float:
        """Bytes a second through each GPU in a ring: its link or, between nodes, all the node's adapters together."""
        within = self.card.link if self.ranks > 1 else math.inf
        between = self.card.network * min(self.ranks, self.per_node) if self.nodes > 1 else math.inf
        return ACHIEVED * min(within, between)

    def gather(self, count: float, times: int = 1) -> float:
        """Seconds of an all-gather or a reduce-scatter of `count` bytes in all, in `times` pieces."""
        if self.ranks == 1 or not count:
            return 0.0
        moved = count * (self.ranks - 1) / self.ranks
        return min(self._ring(p, self.ranks - 1, self.nodes - 1, moved, times) for p in PROTOCOLS)

    def reduce(self, count: float, times: int = 1) -> float:
        """Seconds of an all-reduce of `count` bytes, in `times` pieces."""
        if self.ranks == 1 or not count:
            return 0.0
        moved = 2 * count * (self.ranks - 1) / self.ranks
        rings = [
            self._ring(p, 2 * (self.ranks - 1), 2 * self.nodes * (self.nodes > 1), moved, times) for p in PROTOCOLS
        ]
        return min(*rings, *(self._tree(p, moved, times) for p in PROTOCOLS))

    def deliver(self, count: float, times: int) -> float:
        """Seconds of reductions to single ranks, `count` bytes in all, in `times` pieces."""
        if self.ranks == 1 or not count:
            return 0.0
        moved = count * (self.ranks - 1) / self.ranks
        return min(self._ring(p, self.ranks, self.nodes * (self.nodes > 1), moved, times) for p in PROTOCOLS)

    def hand_on(self, count: float, hops: int) -> float:
        """Seconds in which each rank hands `count` bytes in all on to the next, in `hops` steps."""
        if self.ranks == 1 or not count:
            return 0.0
        between = self.card.network if self.nodes > 1 else math.inf
        reached = ACHIEVED * min(self.card.link, between)
        base, nvlink, pci, net = PROTOCOLS[-1].ring
        within = nvlink if self.card.nvlink else pci
        hop = net if self.nodes > 1 else within
        return hops * (base + hop) * MICRO + count / reached

    def _ring(self, protocol: Protocol, hops: int, between: int, moved: float, times: int) -> float:
        base, nvlink, pci, net = protocol.ring
        hop = nvlink if self.card.nvlink else pci
        latency = base + max(0, hops - between) * hop + between * net
        return times * latency * MICRO + moved / self._reached(protocol)

    def _tree(self, protocol: Protocol, moved: float, times: int) -> float:
        base, nvlink, pci, net = protocol.tree
        hop = nvlink if self.card.nvlink else pci
        latency = base + 2 * ((self.ranks / self.nodes - 1) * hop + math.log2(self.nodes) * net)
        return times * latency * MICRO + moved / (0.92 * self._reached(protocol))

    def _reached(self, protocol: Protocol) -> float:
        return min(protocol.share * self.bandwidth, protocol.cap if self.nodes > 1 else math.inf)
