"""The preflight: which ranks are there, what each node is, how fast each pair and all of them exchange."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
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
"""Share of the median node's best pair below which a node's network is called slow. The speed of gloo is that of the
cores, which others may use too."""
WORK_SECONDS = 5.0  # more than it takes to measure a device
FACTS, WHOLE = "the facts", "the whole"


@dataclass(frozen=True)
class Node:
    host: str
    ranks: tuple[int, ...]


@dataclass
class Survey:
    """All that rank 0 has found."""

    world: int
    seconds: float  # that the ranks had to join
    missing: dict[int, str]  # ranks that did not join, and their hosts if the launcher tells
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


@dataclass(frozen=True)
class Assignment:
    """What rank 0 asks a rank to do next.

    Attributes:
        step: its name; "" = nothing more.
        patience: seconds in which a group must answer.
        ranks: those to exchange with, itself included.
    """

    step: str = ""
    patience: float = 0.0
    ranks: tuple[int, ...] = ()

    @property
    def wait_s(self) -> float:
        """Seconds that rank 0 waits for answers."""
        return 1.5 * self.patience + (0 if self.ranks else WORK_SECONDS)


@dataclass(frozen=True)
class _Place:
    """What a rank needs for its tasks."""

    calls: RollCall
    host: str
    run: Path
    mirrored: bool


def survey(calls: RollCall, run: Path, mirrored: bool, patience: float) -> Survey | None:
    """Survey the nodes; all ranks must call.

    Args:
        mirrored: the nodes may have run folders of their own.
        patience: seconds that all ranks have to join; each pair has a quarter of that to answer.

    Returns:
        What rank 0 found; None on the others, which only do as it asks.
    """
    place = _Place(calls, socket.gethostname(), run, mirrored)
    if calls.rank == 0:
        found = _survey_all(place, patience)
        calls.assign(dict.fromkeys(calls.living[1:], asdict(Assignment())))
        return found
    task = Assignment(**calls.answer("the start", place.host, patience))
    while task.step:
        task = Assignment(**calls.answer(task.step, _do(place, task), task.wait_s))
    return None


def _survey_all(place: _Place, patience: float) -> Survey:
    calls = place.calls
    came = calls.hear(place.host, patience)
    nodes, world = nodes_of(came), calls.rendezvous.world
    hosts = expected_hosts()
    missing = {rank: hosts.get(rank, "") for rank in range(world) if rank not in came}
    found = Survey(world, patience, missing, {}, nodes, Standings(len(nodes)))
    if missing:
        return found
    print(f"ranks: {len(came)}  nodes: {len(nodes)}  rounds of pairs: {len(rounds(len(nodes)))}", flush=True)
    step = patience / 4
    words = _all_do(place, dict.fromkeys(calls.living, Assignment(FACTS, step)))
    found.facts = {rank: RankFacts(**word) for rank, word in words.items()}
    found.standings.silent |= _silent(nodes, words)
    _play(place, found, "round", step)
    if found.standings.slow(found.slow_below):  # measured again before any node is accused
        _play(place, found, "repeated round", step)
    if world > 1 and not found.standings.out() and not found.standings.failures:
        _measure_whole(place, found, step)
    return found


def _all_do(place: _Place, tasks: dict[int, Assignment]) -> dict[int, Any]:
    """Give each rank its task, and collect the answers; rank 0 calls."""
    place.calls.assign({rank: asdict(task) for rank, task in tasks.items() if rank})
    return place.calls.hear(_do(place, tasks[0]), tasks[0].wait_s)


def _do(place: _Place, task: Assignment) -> dict[str, Any]:
    if task.step == FACTS:
        return asdict(gather_facts(place.host, place.run, time.time()))
    if task.step == WHOLE:
        everyone = list(range(place.calls.rendezvous.world))
        return _exchange(place, task, everyone, lambda: find_folder_group(place.run, place.mirrored))
    return _exchange(place, task, task.ranks) if task.ranks else {}


def nodes_of(hosts: dict[int, str]) -> list[Node]:
    """Ranks grouped by host, in the order of each host's first."""
    ranks: dict[str, list[int]] = {}
    for rank, host in sorted(hosts.items()):
        ranks.setdefault(host, []).append(rank)
    return [Node(host, tuple(of_host)) for host, of_host in ranks.items()]


def _play(place: _Place, found: Survey, name: str, patience: float) -> None:
    """Measure all pairs of nodes that answer, round by round."""
    for number, pairs in enumerate(rounds(len(found.nodes))):
        out = found.standings.out()
        pairs = [pair for pair in pairs if not out & set(pair)]
        tasks = dict.fromkeys(place.calls.living, Assignment(f"{name} {number}", patience))
        for pair in pairs:
            ranks = tuple(rank for node in pair for rank in found.nodes[node].ranks)
            tasks |= dict.fromkeys(ranks, Assignment(f"{name} {number}", patience, ranks))
        answers = _all_do(place, tasks)
        found.standings.silent |= _silent(found.nodes, answers)
        for pair in pairs:
            if not found.standings.silent & set(pair):
                found.standings.add(pair, _judge(pair, found.nodes, answers))


def _exchange(
    place: _Place, task: Assignment, ranks: Sequence[int], then: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """This rank's answer on an all-reduce among `ranks`: its speed, or why it failed.

    Args:
        then: called within their group; a `UserError` from it is the answer's "storage".
    """
    place.calls.allow(2 * task.patience + WORK_SECONDS)
    word: dict[str, Any] = {}
    try:
        with dist.group(place.calls.rendezvous, f"{task.step}/{ranks[0]}", ranks, task.patience):
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


def _measure_whole(place: _Place, found: Survey, patience: float) -> None:
    answers = _all_do(place, dict.fromkeys(place.calls.living, Assignment(WHOLE, patience)))
    found.standings.silent |= _silent(found.nodes, answers)
    found.storage = next((word["storage"] for word in answers.values() if "storage" in word), "")
    found.whole_failure = next((word["error"] for word in answers.values() if "error" in word), "")
    if not found.whole_failure:
        found.whole = Speed(answers[0]["bytes_per_s"], answers[0]["latency_s"])


def _silent(nodes: list[Node], answers: dict[int, Any]) -> set[int]:
    """Nodes with a rank that gave no answer."""
    return {number for number, node in enumerate(nodes) if not answers.keys() >= set(node.ranks)}
