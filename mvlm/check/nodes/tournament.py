"""Rounds of pairs of nodes, as many pairs at a time as there can be, and their results."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field

Pair = tuple[int, int]
ALL_PAIRS = 16
"""Number of nodes up to which every pair is tried. A node is judged by its best pair, for which a few are enough; all
pairs of 512 nodes would take 511 rounds of seconds each."""
ENOUGH_FAILURES = 2  # of pairs with different nodes, after which the node itself is blamed


def rounds(count: int) -> list[list[Pair]]:
    """Pairs of `count` nodes in rounds, none of which has a node twice: the circle method of round-robin.

    Up to `ALL_PAIRS` nodes, all pairs; with more, as many rounds as that takes or twice the binary logarithm of the
    number of nodes, whichever is more, spread over the whole round-robin.
    """
    if count < 2:
        return []
    circle: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    half, played = len(circle) // 2, []
    for _ in range(len(circle) - 1):
        pairs = zip(circle[:half], reversed(circle[half:]), strict=True)
        played.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    most = max(ALL_PAIRS - 1, 2 * (count - 1).bit_length())
    return played if len(played) <= most else [played[len(played) * at // most] for at in range(most)]


@dataclass(frozen=True)
class Speed:
    """The speed of an all-reduce between two nodes, or among all ranks."""

    bytes_per_s: float
    latency_s: float

    def better(self, other: Speed) -> Speed:
        """The better of each value, as disturbances only slow a measurement down."""
        return Speed(max(self.bytes_per_s, other.bytes_per_s), min(self.latency_s, other.latency_s))


@dataclass
class Standings:
    """What is known of `count` nodes and their pairs."""

    count: int
    speeds: dict[Pair, Speed] = field(default_factory=dict)
    failures: dict[Pair, str] = field(default_factory=dict)  # both nodes are alive, and say why they failed
    silent: set[int] = field(default_factory=set)  # nodes with a rank that gave no answer

    def add(self, pair: Pair, outcome: Speed | str) -> None:
        if isinstance(outcome, str):
            self.failures[pair] = outcome
        else:
            known = self.speeds.get(pair)
            self.speeds[pair] = known.better(outcome) if known else outcome

    def unreachable(self) -> set[int]:
        """Nodes that are alive, but failed to exchange with every other node that was tried."""
        failed = Counter(node for pair in self.failures for node in pair)
        reached = {node for pair in self.speeds for node in pair}
        return {node for node, times in failed.items() if times >= ENOUGH_FAILURES and node not in reached}

    def out(self) -> set[int]:
        """Nodes that take no more part."""
        return self.silent | self.unreachable()

    def best(self) -> dict[int, float]:
        """Bytes a second of the best pair of each node that has one.

        A slow node is slow with all others, whereas each of those is slow with it alone: the best pair tells which.
        """
        best: dict[int, float] = {}
        for pair, speed in self.speeds.items():
            for node in pair:
                best[node] = max(best.get(node, 0.0), speed.bytes_per_s)
        return best

    def slow(self, share: float) -> set[int]:
        """Nodes whose best pair is slower than a share of the median node's best pair."""
        best = self.best()
        return {node for node, speed in best.items() if speed < share * statistics.median(best.values())}
