"""The preflight: who is there, what each node is, how fast each pair and all of them exchange."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mvlm.check.nodes.facts import RankFacts, expected_hosts, gather_facts
from mvlm.check.nodes.measure import bus_bandwidth, latency_s
from mvlm.check.nodes.rollcall import RollCall
from mvlm.check.nodes.tournament import Pair, Speed, Standings, rounds
from mvlm.checkpoint.folder_group import find_folder_group
from mvlm.errors import UserError, first_line
from mvlm.runtime import dist

SLOW, SLOW_ON_CPU = 0.5, 0.25
"""Share of the median node's best pair below which a node's network is called slow. gloo is as fast as the cores, which
others may use too."""
WORK_SECONDS = 5.0  # more than the speed of a device takes


@dataclass(frozen=True)
class Node:
    host: str
    ranks: tuple[int, ...]


@dataclass
class Survey:
    """All that was found; the same on every rank that was heard to the end."""

    world: int
    seconds: float  # that the ranks had to come
    missing: dict[int, str]  # ranks that did not come, and their hosts where the launcher tells
    facts: dict[int, RankFacts]
    nodes: list[Node]
    standings: Standings
    whole: Speed | None = None  # of all ranks
    whole_failure: str = ""
    storage: str = ""  # what is wrong with the run folder

    @property
    def slow_below(self) -> float:
        on_cpu = any(facts.device == "cpu" for facts in self.facts.values())
        return SLOW_ON_CPU if on_cpu else SLOW


def survey(calls: RollCall, run: Path, mirrored: bool, patience: float) -> Survey:
    """Ask and measure; all ranks must call.

    Args:
        mirrored: the nodes may have run folders of their own.
        patience: seconds that all ranks have to come; a quarter of it each pair has to answer in.
    """
    host = socket.gethostname()
    came = calls.call("the start", host, patience)
    clock = time.time()
    nodes = nodes_of(came)
    hosts = expected_hosts()
    missing = {rank: hosts.get(rank, "") for rank in range(calls.rendezvous.world) if rank not in came}
    found = Survey(calls.rendezvous.world, patience, missing, {}, nodes, Standings(len(nodes)))
    if missing:
        return found
    if calls.rank == 0:
        print(f"ranks: {len(came)}  nodes: {len(nodes)}  rounds of pairs: {len(rounds(len(nodes)))}", flush=True)
    step = patience / 4
    words = calls.call("the facts", asdict(gather_facts(host, run, clock)), step + WORK_SECONDS)
    found.facts = {rank: RankFacts(**word) for rank, word in words.items()}
    found.standings.silent |= _silent(nodes, words)
    _play(calls, found, "round", step)
    if found.standings.slow(found.slow_below):  # measured again before anybody is accused
        _play(calls, found, "repeated round", step)
    if calls.rendezvous.world > 1 and not found.standings.out() and not found.standings.failures:
        _measure_whole(calls, found, run, mirrored, step)
    return found


def nodes_of(hosts: dict[int, str]) -> list[Node]:
    """Ranks by host, in the order of their first ones."""
    ranks: dict[str, list[int]] = {}
    for rank, host in sorted(hosts.items()):
        ranks.setdefault(host, []).append(rank)
    return [Node(host, tuple(of_host)) for host, of_host in ranks.items()]


def _play(calls: RollCall, found: Survey, name: str, patience: float) -> None:
    """Measure all pairs of nodes that answer, round by round."""
    for number, pairs in enumerate(rounds(len(found.nodes))):
        step, out = f"{name} {number}", found.standings.out()
        pairs = [pair for pair in pairs if not out & set(pair)]
        outcome = None
        for pair in pairs:
            ranks = [rank for node in pair for rank in found.nodes[node].ranks]
            if calls.rank in ranks:
                outcome = _exchange(calls, f"{step}/{pair}", ranks, patience)
        answers = calls.call(step, outcome or {}, 1.5 * patience)
        found.standings.silent |= _silent(found.nodes, answers)
        for pair in pairs:
            if not found.standings.silent & set(pair):
                found.standings.add(pair, _judge(pair, found.nodes, answers))


def _exchange(
    calls: RollCall, name: str, ranks: list[int], patience: float, then: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """This rank's view of an all-reduce among some: its speed, or why there is none.

    Args:
        then: is done in their group; what it finds wrong is "storage".
    """
    calls.allow(2 * patience + WORK_SECONDS)
    word: dict[str, Any] = {}
    try:
        with dist.group(calls.rendezvous, name, ranks, patience):
            latency = latency_s()
            word = asdict(Speed(bus_bandwidth(), latency))
            then()
    except UserError as error:
        word["storage"] = str(error)
    except RuntimeError as error:
        word["error"] = first_line(error)
    return word


def _judge(pair: Pair, nodes: list[Node], answers: dict[int, Any]) -> Speed | str:
    words = [answers[rank] for node in pair for rank in nodes[node].ranks]
    failures = [word["error"] for word in words if "error" in word]
    return failures[0] if failures else Speed(**words[0])


def _measure_whole(calls: RollCall, found: Survey, run: Path, mirrored: bool, patience: float) -> None:
    word = _exchange(calls, "whole", calls.living, patience, lambda: find_folder_group(run, mirrored))
    answers = calls.call("the whole", word, 1.5 * patience + WORK_SECONDS)
    found.standings.silent |= _silent(found.nodes, answers)
    found.storage = next((word["storage"] for word in answers.values() if "storage" in word), "")
    found.whole_failure = next((word["error"] for word in answers.values() if "error" in word), "")
    if not found.whole_failure:
        found.whole = Speed(answers[0]["bytes_per_s"], answers[0]["latency_s"])


def _silent(nodes: list[Node], answers: dict[int, Any]) -> set[int]:
    """Nodes of which a rank gave no answer."""
    return {number for number, node in enumerate(nodes) if not answers.keys() >= set(node.ranks)}
