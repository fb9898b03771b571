"""The messages between ranks of a preflight: real ranks, each under a host name of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mvlm.check.nodes import check, facts
from mvlm.check.nodes.rollcall import RollCall
from mvlm.check.nodes.verdict import findings
from mvlm.errors import UserError
from mvlm.runtime import dist, rendezvous
from tests.ranks import run_ranks

PATIENCE = 120.0


def preflight(folder: str) -> int:
    """`mvlm preflight` with given speeds; writes its findings and the length of the longest message received."""
    rank, peek = int(os.environ["RANK"]), rendezvous.Rendezvous.peek
    longest = 0

    def measured(self: rendezvous.Rendezvous, key: str) -> Any:
        nonlocal longest
        word = peek(self, key)
        longest = max(longest, len(json.dumps(word)))
        return word

    rendezvous.Rendezvous.peek = measured  # type: ignore[method-assign]
    check.socket = SimpleNamespace(gethostname=lambda: f"n{rank}")  # type: ignore[attr-defined]
    check.bus_bandwidth, check.latency_s, facts.matmul_flops = exchanged, (lambda: 1e-4), (lambda: 1e12)
    calls = RollCall(f"n{rank}", PATIENCE)
    found = check.survey(calls, Path(folder) / "run", False, PATIENCE)
    judged = None if found is None else {"pairs": len(found.standings.speeds), "sentences": findings(found)}
    (Path(folder) / f"{rank}.json").write_text(json.dumps({"longest": longest, "judged": judged}))
    return calls.close(7) - 7


def exchanged() -> float:
    """A given speed, once all ranks of the group have arrived."""
    dist.barrier()
    return 1e10


def test_messages_do_not_grow_with_the_number_of_ranks(tmp_path: Path) -> None:
    longest = []
    for ranks, pairs in ((2, 1), (7, 21)):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        done = run_ranks(preflight, str(folder), ranks=ranks)
        assert done.returncode == 0, done.stderr
        first, *others = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
        assert first["judged"] == {"pairs": pairs, "sentences": []}
        assert [other["judged"] for other in others] == [None] * (ranks - 1)
        longest.append(max(other["longest"] for other in others))
    assert longest[0] == longest[1]


def come_late() -> int:
    calls = RollCall("n", PATIENCE)
    if calls.rank == 0:
        assert calls.hear("here", 0.1) == {0: "here"} and calls.living == [0]
        calls.rendezvous.post("continued", True)
        return 0 if calls.rendezvous.read("too late", PATIENCE) else 1
    calls.rendezvous.read("continued", PATIENCE)
    with pytest.raises(UserError, match="rank 1 on n came too late to the start, and the others began"):
        calls.answer("the start", "n", PATIENCE)
    calls.rendezvous.post("too late", True)
    return 0


def test_a_late_rank_learns_that_the_others_began_without_it() -> None:
    done = run_ranks(come_late, ranks=2)
    assert done.returncode == 0, done.stderr
