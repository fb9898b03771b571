"""A survey as tables for people and as JSON for programs."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from mvlm.check.nodes.check import Survey
from mvlm.check.nodes.tournament import Pair

SHOWN_PAIRS = 15
WIDTH = 110


def show(found: Survey) -> None:
    """Print the nodes and the pairs, the slowest of them first."""
    console = Console(width=WIDTH, highlight=False)
    if found.facts:
        console.print(_nodes(found))
    if found.standings.speeds or found.standings.failures:
        console.print(_pairs(found))
    if found.whole:
        console.print(
            f"all {found.world} ranks: {found.whole.bytes_per_s / 1e9:.3g} GB/s, {found.whole.latency_s * 1e3:.3g} ms"
        )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("node", "device", "between", "and") else "right")
    return table


def _nodes(found: Survey) -> Table:
    table = _table("node", "ranks", "device", "TFLOP/s", "free GB", "best GB/s")
    best = found.standings.best()
    for number, node in enumerate(found.nodes):
        facts = [found.facts[rank] for rank in node.ranks if rank in found.facts]
        if not facts:
            table.add_row(node.host, str(len(node.ranks)), "no answer")
            continue
        table.add_row(
            node.host,
            str(len(node.ranks)),
            f"{facts[0].devices} x {facts[0].device}",
            f"{min(fact.flops for fact in facts) / 1e12:.3g}",
            f"{facts[0].free_bytes / 1e9:.0f}",
            f"{best[number] / 1e9:.3g}" if number in best else "-",
        )
    return table


def _pairs(found: Survey) -> Table:
    standings, hosts = found.standings, [node.host for node in found.nodes]
    table = _table("between", "and", "GB/s", "ms")
    for a, b in sorted(standings.failures):
        table.add_row(hosts[a], hosts[b], "failed", "-")
    slowest = sorted(standings.speeds, key=lambda pair: standings.speeds[pair].bytes_per_s)
    for a, b in slowest[:SHOWN_PAIRS]:
        speed = standings.speeds[a, b]
        table.add_row(hosts[a], hosts[b], f"{speed.bytes_per_s / 1e9:.3g}", f"{speed.latency_s * 1e3:.3g}")
    if len(slowest) > SHOWN_PAIRS:
        table.add_row(f"and {len(slowest) - SHOWN_PAIRS} faster pairs")
    return table


def as_json(found: Survey, sentences: list[str]) -> dict[str, Any]:
    """In bytes, seconds and operations a second."""
    hosts = [node.host for node in found.nodes]

    def named(pair: Pair) -> dict[str, Any]:
        return {"nodes": [hosts[number] for number in pair]}

    return {
        "at": time.time(),
        "world": found.world,
        "findings": sentences,
        "slow_below": found.slow_below,
        "missing": {str(rank): host for rank, host in found.missing.items()},
        "nodes": [
            {"host": node.host, "ranks": [asdict(found.facts[r]) | {"rank": r} for r in node.ranks if r in found.facts]}
            for node in found.nodes
        ],
        "pairs": [
            *(named(pair) | asdict(speed) for pair, speed in found.standings.speeds.items()),
            *(named(pair) | {"failure": why} for pair, why in found.standings.failures.items()),
        ],
        "all": asdict(found.whole) if found.whole else None,
    }
