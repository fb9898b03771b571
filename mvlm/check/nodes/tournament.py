"""Pairs of nodes, as many at a time as there is room for, and what came of it."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field

Pair = tuple[int, int]
ALL_PAIRS = 16
"""Nodes up to which every pair is tried. A node is told by the best of its pairs, for which a few are enough; all pairs
of 512 nodes would take 511 rounds of seconds each."""
ENOUGH_FAILURES = 2  # of pairs with different others, after which it is the node


def rounds(count: int) -> list[list[Pair]]:
    """Pairs of `count` nodes in rounds, none of which has a node twice: the circle method of round-robin.

    All pairs of up to `ALL_PAIRS` nodes; of more, as many rounds as those have or twice the logarithm of their number,
    whichever is more, from all of the round-robin.
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
    """Of an all-reduce between two nodes, or among all ranks."""

    bytes_per_s: float
    latency_s: float

    def better(self, other: Speed) -> Speed:
        """The better of each: what disturbs a measurement slows it down."""
        return Speed(max(self.bytes_per_s, other.bytes_per_s), min(self.latency_s, other.latency_s))


@dataclass
class Standings:
    """What is known of `count` nodes and their pairs."""

    count: int
    speeds: dict[Pair, Speed] = field(default_factory=dict)
    failures: dict[Pair, str] = field(default_factory=dict)  # both nodes live, and say why it failed
    silent: set[int] = field(default_factory=set)  # nodes of which a rank gave no answer

    def add(self, pair: Pair, outcome: Speed | str) -> None:
        if isinstance(outcome, str):
            self.failures[pair] = outcome
        else:
            known = self.speeds.get(pair)
            self.speeds[pair] = known.better(outcome) if known else outcome

    def unreachable(self) -> set[int]:
        """Nodes that live and exchange nothing with any of the others that tried."""
        failed = Counter(node for pair in self.failures for node in pair)
        reached = {node for pair in self.speeds for node in pair}
        return {node for node, times in failed.items() if times >= ENOUGH_FAILURES and node not in reached}

    def out(self) -> set[int]:
        """Nodes that no more is asked of."""
        return self.silent | self.unreachable()

    def best(self) -> dict[int, float]:
        """Bytes a second of the best pair of each node that has one.

        A slow node is slow with all others, so its best tells it from those whose pair with it alone is slow.
        """
        best: dict[int, float] = {}
        for pair, speed in self.speeds.items():
            for node in pair:
                best[node] = max(best.get(node, 0.0), speed.bytes_per_s)
        return best

    def slow(self, share: float) -> set[int]:
        """Nodes whose best pair has less than a share of what the median node's best pair has."""
        best = self.best()
        return {node for node, speed in best.items() if speed < share * statistics.median(best.values())}
