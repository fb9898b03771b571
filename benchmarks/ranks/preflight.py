"""What a preflight's store sends to each rank as the ranks grow in number: python benchmarks/ranks/preflight.py

Forks on loopback, each with the name of a separate node, go through a whole preflight (mvlm/check/nodes): all its
steps, groups and rounds of pairs. It counts what the store sends to each, both words and addresses; speeds are given
instead of measured, and what pairs would exchange for that is left out. Counts do not depend on the machine.
results/preflight.jsonl gets a line for each number of ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT)
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


from benchmarks.ranks.counting import about, counted_stores, keep  # noqa: E402
from mvlm.check.nodes import check, facts, rollcall, tournament, verdict  # noqa: E402
from mvlm.runtime import dist  # noqa: E402
from mvlm.runtime.launch import free_port  # noqa: E402

PATIENCE_S = 60.0  # enough for many processes on few cores


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    for ranks in words.parse_args().ranks:
        keep("preflight.jsonl", {"ranks": ranks} | counted(ranks) | about())


def counted(ranks: int) -> dict[str, Any]:
    """Requests, and bytes of words and addresses: for rank 0, the busiest other rank and all together."""
    context = get_context("fork")
    answers, port = context.SimpleQueue(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        forks = [
            context.Process(target=survey, args=(rank, ranks, port, Path(folder), answers)) for rank in range(ranks)
        ]
        for fork in forks:
            fork.start()
        found = dict(answers.get() for _ in forks)
        for fork in forks:
            fork.join()
    others = [found[rank] for rank in range(1, ranks)]
    return {"rounds": len(tournament.rounds(ranks)), "findings": found[0].pop("findings")} | {
        name: {"of rank 0": found[0][name], "of another": max(one[name] for one in others)}
        | {"of all": sum(one[name] for one in found.values())}
        for name in found[0]
    }


def survey(rank: int, ranks: int, port: int, folder: Path, answers: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    stores = counted_stores()
    check.socket = SimpleNamespace(gethostname=lambda: f"node-{rank:05d}")  # type: ignore[assignment]
    check.bus_bandwidth, check.latency_s, facts.matmul_flops = exchanged, (lambda: 1e-4), (lambda: 1e12)
    calls = rollcall.RollCall(f"node-{rank:05d}", PATIENCE_S)
    with contextlib.redirect_stdout(io.StringIO()):
        found = check.survey(calls, folder / "run", False, 4 * PATIENCE_S)
    words = sum(stores[0].given_of[kind] for kind in ("tasks", "words", "end"))
    counts = {"requests": sum(stores[0].requests.values()), "words": words, "addresses": stores[0].given - words}
    answers.put((rank, counts | ({"findings": verdict.findings(found)} if found else {})))
    calls.close(0)


def exchanged() -> float:
    """A given speed, once all ranks of the group are here."""
    dist.barrier()
    return 1e10


if __name__ == "__main__":
    main()
