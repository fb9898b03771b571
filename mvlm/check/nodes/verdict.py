"""What a survey found wrong, in sentences that name the node, the gravest first."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable

from mvlm.check.machine.storage import CLOCK_SECONDS, LEAST_FREE_BYTES
from mvlm.check.nodes.check import Node, Survey

SLOW_GPU, SLOW_CPU = 0.75, 0.5
"""Share of the median speed below which a device is called slow: GPUs of one model differ by a few percent."""
SLOW_FABRIC = 0.4
"""Share of its rating below which a node's network is called slow in itself. NCCL reaches most of it over InfiniBand
and EFA, and about half of a fast Ethernet's over sockets."""
NAMED = 8  # items of a list that a sentence names


def findings(found: Survey) -> list[str]:
    """The sentences; empty if all is well."""
    if found.missing:
        return [_absent(found)]
    sentences = [*_dead(found), *_unreachable(found)]
    if found.storage:
        sentences.append(found.storage)
    if found.whole_failure:
        sentences.append(
            f"Pairs of nodes exchange, but all ranks together do not ({found.whole_failure}): "
            "try again with fewer nodes, and with NCCL_DEBUG=INFO in job.environment."
        )
    of_nodes = (_different, _full, _sockets, _slow_nodes, _slow_fabric, _slow_devices, _clocks)
    return [*sentences, *(sentence for judge in of_nodes for sentence in judge(found))]


def node_names(nodes: Iterable[Node]) -> str:
    return _listed([f"{node.host} (rank{'s' if len(node.ranks) > 1 else ''} {_spans(node.ranks)})" for node in nodes])


def _absent(found: Survey) -> str:
    hosts: dict[str, list[int]] = defaultdict(list)
    for rank, host in found.missing.items():
        hosts[host].append(rank)
    unnamed = hosts.pop("", [])
    named = [node_names([Node(host, tuple(ranks)) for host, ranks in hosts.items()])] if hosts else []
    named += [f"rank{'s' if len(unnamed) > 1 else ''} {_spans(unnamed)}"] if unnamed else []
    came = _listed([node.host for node in found.nodes])
    return (
        f"{' and '.join(named)} did not join within {found.seconds:.0f} s, as {came} did: "
        "see whether that node is up and reaches rank 0, or leave it out."
    )


def _dead(found: Survey) -> list[str]:
    dead = [found.nodes[number] for number in sorted(found.standings.silent)]
    if not dead:
        return []
    if len(dead) == len(found.nodes) - 1 > 1:
        return [
            f"No other node answers {found.nodes[0].host}, where rank 0 is, any more: most likely its own link is "
            "broken; leave that node out."
        ]
    return [f"{node_names(dead)} joined and then stopped answering: see whether that node is up, or leave it out."]


def _unreachable(found: Survey) -> list[str]:
    lonely = found.standings.unreachable()
    sentences = []
    if lonely:
        reason = next(why for pair, why in found.standings.failures.items() if lonely & set(pair))
        sentences.append(
            f"{node_names(found.nodes[number] for number in sorted(lonely))} respond but exchange nothing with any "
            f"other node ({reason}): check its link, its firewall and job.network."
        )
    pairs = {pair: why for pair, why in found.standings.failures.items() if not lonely & set(pair)}
    for (a, b), why in pairs.items():
        sentences.append(
            f"{node_names([found.nodes[a], found.nodes[b]])} do not reach each other ({why}): check the link between "
            "them, or leave one out."
        )
    return sentences


def _different(found: Survey) -> list[str]:
    """Nodes that differ from most."""
    of_ranks = {
        **{name: {r: f.versions.get(name, "none") for r, f in found.facts.items()} for name in _version_names(found)},
        "devices": {r: f"{f.devices} x {f.device}" for r, f in found.facts.items()},
    }
    sentences = []
    for name, values in of_ranks.items():
        most = Counter(values.values()).most_common(1)[0][0]
        others = [node for node in found.nodes if any(values.get(rank, most) != most for rank in node.ranks)]
        if others:
            has = sorted({values[rank] for node in others for rank in node.ranks if values.get(rank, most) != most})
            sentences.append(
                f"{node_names(others)} has {name} {_listed(has)} where most have {most}: make them the same."
            )
    return sentences


def _version_names(found: Survey) -> list[str]:
    return sorted({name for facts in found.facts.values() for name in facts.versions})


def _full(found: Survey) -> list[str]:
    full = [n for n in found.nodes if any(found.facts[r].free_bytes < LEAST_FREE_BYTES for r in _known(found, n))]
    return [f"{node_names(full)} has less than 1 GB free at run.dir: make room, or set run.dir."] if full else []


def _slow_nodes(found: Survey) -> list[str]:
    best = found.standings.best()
    slow = sorted(found.standings.slow(found.slow_below))
    if not slow:
        return []
    speeds = _listed([f"{best[number] / 1e9:.3g}" for number in slow])
    return [
        f"{node_names(found.nodes[number] for number in slow)} is slow: {speeds} GB/s in its best pair, and the median "
        f"node {statistics.median(best.values()) / 1e9:.3g}: check its link, or leave it out."
    ]


def _sockets(found: Survey) -> list[str]:
    """Nodes with fast adapters that NCCL would not use."""
    nodes: dict[str, list[Node]] = defaultdict(list)
    for node in found.nodes:
        reasons = {found.facts[rank].sockets for rank in _known(found, node) if found.facts[rank].device != "cpu"}
        for reason in filter(None, reasons):
            nodes[reason].append(node)
    return [f"NCCL would use TCP sockets on {node_names(of_reason)}: {why}." for why, of_reason in nodes.items()]


def _slow_fabric(found: Survey) -> list[str]:
    """Nodes far below what their links are rated at: all may be equally slow, or there may be only two.

    Not judged on the CPU, where gloo is slower than any fast link.
    """
    sentences, best = [], found.standings.best()
    slow = found.standings.slow(found.slow_below)  # named already
    for number, node in enumerate(found.nodes):
        rated = rated_bytes_per_s(found, node)
        if number in best and number not in slow and best[number] < SLOW_FABRIC * rated:
            sentences.append(
                f"{node_names([node])} exchanges {best[number] / 1e9:.3g} GB/s in its best pair, but its links are "
                f"rated at {rated / 1e9:.3g}: see with NCCL_DEBUG=INFO whether NCCL uses them (NET/IB, not NET/Socket)."
            )
    return sentences[:NAMED]


def rated_bytes_per_s(found: Survey, node: Node) -> float:
    """What a node's GPUs could exchange with another node's, each over one link; 0 = not known, or on the CPU."""
    facts = [found.facts[rank] for rank in _known(found, node)]
    if not facts or facts[0].device == "cpu":
        return 0.0
    return facts[0].link_rate * min(facts[0].links, len(node.ranks))


def _slow_devices(found: Survey) -> list[str]:
    median = statistics.median(facts.flops for facts in found.facts.values())
    slow = {
        rank: facts
        for rank, facts in found.facts.items()
        if facts.flops < (SLOW_CPU if facts.device == "cpu" else SLOW_GPU) * median
    }
    return [
        f"{facts.host} (rank {rank}) computes at {facts.flops / 1e12:.3g} TFLOP/s, and the median rank at "
        f"{median / 1e12:.3g}: check its clock, its temperature and what else runs there."
        for rank, facts in list(slow.items())[:NAMED]
    ]


def _clocks(found: Survey) -> list[str]:
    median = statistics.median(facts.clock for facts in found.facts.values())
    off = {
        node.host: max((found.facts[rank].clock - median for rank in _known(found, node)), key=abs, default=0.0)
        for node in found.nodes
    }
    return [
        f"The clock of {host} is {seconds:+.0f} s off the others': set it with NTP or chrony."
        for host, seconds in off.items()
        if abs(seconds) > CLOCK_SECONDS
    ]


def _known(found: Survey, node: Node) -> list[int]:
    return [rank for rank in node.ranks if rank in found.facts]


def _listed(words: list[str]) -> str:
    return ", ".join(words[:NAMED]) + (f" and {len(words) - NAMED} more" if len(words) > NAMED else "")


def _spans(ranks: Iterable[int]) -> str:
    """The ranks as spans, such as "0-3, 8"."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    return ", ".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)
