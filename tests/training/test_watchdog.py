"""Runs of two real ranks that hang in every way a rank can, and the rank that is named."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from mvlm.training.health.heartbeat import QUIET_AFTER, Hang, Heartbeat, Others, read
from mvlm.training.health.watchdog import _Inquiry
from tests.ranks import Copy, free_port
from tests.training.watchdog_worker import AT, ATTEMPT, SECONDS, work

CHECKPOINT = "step_00000002"
DEADLINE = 200.0


class Ranks:
    """Two ranks of a run, one of which is disturbed."""

    def __init__(self, run: Path, disturbed: int, how: str, prepare: Callable[[Path], None] | None = None) -> None:
        self.run = run
        (run / "checkpoints" / CHECKPOINT).mkdir(parents=True)
        (run / "checkpoints/latest").write_text(CHECKPOINT)
        if prepare:
            prepare(run)
        port = free_port()
        self.copies = [Copy(work, run, rank, port, disturbed, how) for rank in range(2)]
        self.processes: list[BaseProcess] = [each.process for each in self.copies]

    def codes(self, *ranks: int) -> list[int | None]:
        """Exit codes of these ranks, once they have ended; None for one that has not within the deadline."""
        for rank in ranks:
            self.processes[rank].join(DEADLINE)
        return [self.processes[rank].exitcode for rank in ranks]

    def said(self, rank: int) -> str:
        return (self.run / f"stderr-{rank}").read_text().strip()

    def hangs(self) -> list[dict]:
        path = self.run / "hangs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def heartbeat(self, rank: int) -> dict:
        return json.loads((self.run / f"heartbeat/rank-{rank:05d}.json").read_text())

    def stack(self, rank: int) -> str:
        return (self.run / f"heartbeat/rank-{rank:05d}.stack.txt").read_text()

    def kill(self) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()


def block(run: Path) -> None:
    """Have the run folder behave as on a file system that does not answer."""
    (run / "heartbeat").mkdir()
    for rank in range(2):
        os.mkfifo(run / f"heartbeat/rank-{rank:05d}.json")


def forbid(run: Path) -> None:
    """Make it impossible to write heartbeats."""
    (run / "heartbeat").write_text("")


SCENARIOS: dict[str, tuple] = {
    "rank 1 sleeps": (1, "sleeps"),
    "rank 0 sleeps": (0, "sleeps"),
    "rank 1 sleeps beside the exchange": (1, "sleeps beside the exchange"),
    "rank 1 is stopped": (1, "is stopped"),
    "rank 0 is stopped": (0, "is stopped"),
    "rank 1 keeps the lock": (1, "keeps the lock"),
    "rank 1 takes long": (1, "takes long"),
    "nothing": (1, "nothing"),
    "blocked": (1, "sleeps", block),
    "forbidden": (1, "sleeps", forbid),
}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ranks]]:
    """All scenarios at the same time, since they mostly sleep."""
    ranks = {name: Ranks(tmp_path_factory.mktemp("run"), *scenario) for name, scenario in SCENARIOS.items()}
    yield ranks
    for each in ranks.values():
        each.kill()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_sleeps_is_named(started: dict[str, Ranks], rank: int) -> None:
    ranks = started[f"rank {rank} sleeps"]
    assert ranks.codes(0, 1) == [75, 75]
    said = ranks.said(0)
    assert f'The run hangs: rank {rank} on {os.uname().nodename} has been in "waiting for data" at step {AT}' in said
    assert said.count("\n") == 0 and f"newest whole checkpoint is {CHECKPOINT}" in said
    assert "rank 1" not in said or rank == 1
    assert ranks.said(1) == ""  # only one rank speaks
    [hang] = ranks.hangs()
    assert (hang["ranks"], hang["no_sign_of_life"], hang["attempt"]) == ([rank], [], ATTEMPT)
    assert f"mvlm: {hang['sentence']}" == said
    assert hang["heartbeats"][0]["still_s"] >= SECONDS
    assert ranks.heartbeat(rank)["doing"] == "waiting for data"
    assert ranks.heartbeat(1 - rank)["doing"] == "agreeing with the other ranks"
    assert "watchdog_worker.py" in ranks.stack(rank)
    assert "background.py" in ranks.stack(1 - rank)


def test_of_ranks_at_the_same_point_the_one_outside_the_exchange_is_named(started: dict[str, Ranks]) -> None:
    ranks = started["rank 1 sleeps beside the exchange"]
    assert ranks.codes(0, 1) == [75, 75]
    assert ranks.heartbeat(0)["marks"] == ranks.heartbeat(1)["marks"]
    assert [hang["ranks"] for hang in ranks.hangs()] == [[1]]
    assert f'rank 1 on {os.uname().nodename} has been in "agreeing with the other ranks"' in ranks.said(0)


@pytest.mark.parametrize(
    ("name", "rank", "state"),
    [
        ("rank 1 is stopped", 1, "stopped"),
        ("rank 0 is stopped", 0, "stopped"),
        ("rank 1 keeps the lock", 1, "sleeping"),
    ],
)
def test_a_rank_without_a_sign_of_life_is_named_by_the_other(
    started: dict[str, Ranks], name: str, rank: int, state: str
) -> None:
    ranks = started[name]
    assert ranks.codes(1 - rank) == [75]
    assert ranks.processes[rank].is_alive()
    said = ranks.said(1 - rank)
    assert f"The run hangs: rank {rank} on " in said
    assert f"sends no heartbeat (process {ranks.processes[rank].pid} is {state}) since it was in" in said
    assert f'while others have been in "agreeing with the other ranks" at step {AT} for' in said
    assert f"rank {1 - rank} on" not in said
    assert [(hang["ranks"], hang["no_sign_of_life"]) for hang in ranks.hangs()] == [([rank], [rank])]


def test_work_that_may_take_long_is_waited_for(started: dict[str, Ranks]) -> None:
    ranks = started["rank 1 takes long"]
    assert ranks.codes(0, 1) == [0, 0]
    assert ranks.hangs() == [] and ranks.said(0) == ranks.said(1) == ""
    assert ranks.stack(0)  # rank 0 waited for longer than its own limit, and looked


def test_a_run_that_does_not_hang_leaves_only_heartbeats(started: dict[str, Ranks]) -> None:
    ranks = started["nothing"]
    assert ranks.codes(0, 1) == [0, 0]
    assert sorted(path.name for path in (ranks.run / "heartbeat").iterdir()) == ["rank-00000.json", "rank-00001.json"]
    assert ranks.heartbeat(1)["attempt"] == ATTEMPT
    assert ranks.said(0) == ranks.said(1) == ""


@pytest.mark.parametrize(("name", "why"), [("blocked", "does not answer"), ("forbidden", "cannot be written")])
def test_a_rank_ends_even_if_the_run_folder_fails(started: dict[str, Ranks], name: str, why: str) -> None:
    ranks = started[name]
    # Without the folder, ranks cannot tell each other that they end. When rank 1 does, its broken connection may end
    # rank 0 first, with 1 here and 75 under `mvlm train`.
    own, other = ranks.codes(1, 0)
    assert own == 75 and other in (75, 1)
    assert why in ranks.said(1)
    assert f'rank 1 on {os.uname().nodename} has been in "waiting for data" at step {AT} for' in ranks.said(1)


def test_a_run_that_was_suspended_continues(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, 1, "dawdles")
    try:
        deadline = time.monotonic() + DEADLINE
        while not (beat := read(tmp_path / "heartbeat", 1, ATTEMPT)) or beat.step < AT or beat.still_s == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for process in ranks.processes:
            os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.5 * SECONDS)
        for process in ranks.processes:
            os.kill(process.pid, signal.SIGCONT)
        assert ranks.codes(0, 1) == [0, 0]
        assert not list((tmp_path / "heartbeat").glob("*.stack.txt"))
    finally:
        ranks.kill()


BEAT = Heartbeat(
    ATTEMPT, 0, "elsewhere", 1, 7, "agreeing", 20, 300.0, stuck=True, exchanging=True, ends=False, time=0.0
)


def beats(*changes: dict) -> dict[int, Heartbeat | None]:
    return {rank: replace(BEAT, rank=rank, **change) for rank, change in enumerate(changes)}


OUTSIDE = {"exchanging": False}
BEHIND = {"marks": 18, "doing": "loading"}


@pytest.mark.parametrize(
    ("found", "quiet", "at_fault"),
    [
        (beats({}, BEHIND, {}), (), [1]),
        (beats({}, BEHIND, BEHIND), (), [1, 2]),
        (beats({}, {**BEHIND, "stuck": False}, {}), (), []),  # may still be at work
        (beats({}, {**BEHIND, "stuck": False}, {}), (2,), [2]),  # but silence is enough
        (beats({}, {}, {}), (), [0, 1, 2]),  # all in the same exchange
        (beats({}, OUTSIDE, {}), (), [1]),
        (beats(OUTSIDE, OUTSIDE), (), [0, 1]),
        (beats({}, OUTSIDE, {}), (2,), [2]),
        (beats({}, {}, {"stuck": False}), (), []),
        (beats({}, {}, {"marks": 30}), (2,), [2]),  # although it is ahead
        (beats({}, BEHIND, {}), (2,), [1, 2]),
        (beats({}) | {1: None}, (1,), [1]),
    ],
)
def test_silent_ranks_and_those_behind_or_outside_the_exchange_are_at_fault(
    found: dict[int, Heartbeat | None], quiet: tuple[int, ...], at_fault: list[int]
) -> None:
    assert Hang(found, frozenset(quiet)).at_fault == at_fault


def test_a_sentence_says_where_each_rank_at_fault_is_and_for_how_long() -> None:
    def sentence(found: dict[int, Heartbeat | None], *quiet: int) -> str:
        return Hang(found, frozenset(quiet)).sentence()

    behind = 'on elsewhere has been in "loading" at step 7 for 5 min'
    assert sentence(beats({}, BEHIND, BEHIND)) == f"rank 1 {behind}, rank 2 {behind}"
    assert sentence(beats({}, *[BEHIND] * 9)).endswith(f"rank 4 {behind}, 5 more ranks likewise")
    together = 'all 2 ranks have been in "agreeing" at step 7 for 5 min and none is behind'
    assert sentence(beats({}, {})).startswith(together)
    assert sentence(beats({"still_s": 90.0})) == 'rank 0 on elsewhere has been in "agreeing" at step 7 for 90 s'
    now = {"time": time.time() - 240, "host": os.uname().nodename, "pid": 2**22 + 1}  # no such process
    gone = f'rank 1 on {now["host"]} sends no heartbeat (process {now["pid"]} is gone) since it was in "agreeing"'
    others = 'while others have been in "agreeing" at step 7 for 5 min'
    assert sentence(beats({}, now), 1) == f"{gone} at step 7, 4 min ago, {others}"
    assert sentence(beats({}) | {1: None}, 1) == f"rank 1 has never sent a heartbeat, {others}"


def test_a_rank_is_quiet_when_nothing_new_comes_from_it_in_this_attempt(tmp_path: Path) -> None:
    others = Others(tmp_path, ATTEMPT)
    replace(BEAT, rank=1, attempt=ATTEMPT - 1).write(tmp_path)
    for look in range(2 * QUIET_AFTER):
        replace(BEAT, time=look).write(tmp_path)
        for rank in range(3):
            others.look(rank)
    assert [others.is_quiet(rank) for rank in range(3)] == [False, True, True]
    assert others.last == {0: replace(BEAT, time=look), 1: None, 2: None}
    (tmp_path / "rank-00000.json").write_text('{"attempt": 3, "ra')  # read while it is being written
    assert others.look(0) == replace(BEAT, time=look)
    assert not others.is_quiet(0)
    replace(BEAT, doing="x").write(tmp_path)  # shorter than the file before
    assert others.look(0) == replace(BEAT, doing="x")


def test_ranks_of_other_nodes_are_not_taken_for_dead(tmp_path: Path) -> None:
    """Rank 1 of three cannot see the heartbeats of the others, whose run folders are their own."""
    inquiry, beat = _Inquiry(tmp_path, ATTEMPT, 1, ranks=(1,), unseen=2), replace(BEAT, rank=1, host="here")
    for look in range(3 * QUIET_AFTER):
        assert not inquiry.others_end()
        hang = inquiry.verdict(replace(beat, time=float(look)))
    assert hang and hang.quiet == frozenset() and hang.at_fault == [1]
    assert (
        hang.sentence() == 'the ranks of here wait for one of the 2 on other nodes, in "agreeing" at step 7 for 5 min'
    )
    hang = inquiry.verdict(replace(beat, exchanging=False, doing="loading"))
    assert hang and hang.sentence() == 'rank 1 on here has been in "loading" at step 7 for 5 min'
