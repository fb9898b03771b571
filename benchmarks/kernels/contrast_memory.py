"""Memory of one rank's part of the contrastive loss.

python benchmarks/kernels/contrast_memory.py    # keeps results/contrast/memory.json and a table on docs/kernels.md

One process plays one of up to 8,192 ranks with 512 pairs each, on tensors that have a size but no values. Bytes are
those of all tensors that are alive at once, as on a CPU, including features and gradients of the own pairs.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.kept import put_between
from mvlm.batch import Encoded
from mvlm.model.losses.itc import Peers, begin_contrast
from mvlm.runtime import gathered
from mvlm.runtime.live_memory import LiveMemory
from mvlm.training.contrast import ranks_at_once

PAGE = Path(__file__).parents[2] / "docs/kernels.md"
RESULTS = Path(__file__).parent / "results/contrast/memory.json"
BEGIN, END = "<!-- table of contrast_memory -->\n", "\n<!-- end of contrast_memory -->"
PAIRS, WIDTH = 512, 256
RANKS = (2, 4, 16, 64, 256, 1024, 2048, 4096, 8192)
SCALES = {"softmax": (0.07, None), "sigmoid": (0.1, -10.0)}
EXCHANGES = {"blocks": RANKS[-1], "ring": 2048}
"""Each with the ranks to stop at: a ring stops at a million pairs, since it takes as many steps as there are ranks."""


def summed(whole: Tensor, async_op: bool) -> SimpleNamespace:
    """Stands in for `all_reduce`: only the size of what is summed matters."""
    return SimpleNamespace(wait=lambda: None)


def handed_on(hops: list[Any]) -> list[SimpleNamespace]:
    return [SimpleNamespace(wait=lambda: None)]


def measure(kind: str, exchange: str, ranks: int) -> dict[str, Any]:
    at_once = ranks_at_once(ranks * PAIRS, ranks, exchange)
    world = SimpleNamespace(rank=lambda: 0, world=lambda: ranks)
    sent = SimpleNamespace(
        all_reduce=summed, batch_isend_irecv=handed_on, P2POp=lambda *_: None, isend=None, irecv=None
    )
    gc.collect()
    with (
        mock.patch.object(gathered, "dist", world),
        mock.patch.object(gathered, "torch_dist", sent),
        FakeTensorMode(),
        LiveMemory(fake=True) as memory,
    ):
        temperature, bias = (None if value is None else torch.full((1,), value) for value in SCALES[kind])
        assert temperature is not None
        own = Encoded(*torch.empty(2, PAIRS, WIDTH), *torch.zeros(2, PAIRS, dtype=torch.int64))
        blocks = gathered.Ring if exchange == "ring" else partial(gathered.Gathered, at_once=at_once)
        peers = Peers(blocks, count=ranks)
        begin_contrast(own, temperature, bias, True, peers)()
    return {
        "kind": kind,
        "exchange": exchange,
        "ranks": ranks,
        "pairs": ranks * PAIRS,
        "blocks": -(-ranks // at_once),
        "bytes": memory.peak,
    }


def table(lines: list[dict[str, Any]]) -> str:
    found = {(line["kind"], line["exchange"], line["ranks"]): line for line in lines}

    def cell(kind: str, by: str, ranks: int) -> str:
        line = found.get((kind, by, ranks))
        return f"{line['bytes'] / 2**20:,.1f} MiB" if line else ""

    rows = [
        f"| {ranks * PAIRS:,} | {ranks:,} | {found['softmax', 'blocks', ranks]['blocks']} | "
        + " | ".join(cell(kind, by, ranks) for by in EXCHANGES for kind in SCALES)
        + " |"
        for ranks in RANKS
    ]
    head = "| pairs in the global batch | ranks | blocks | softmax | sigmoid | ring, softmax | ring, sigmoid |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--largest", type=int, default=RANKS[-1], help="ranks to stop at; if not all, nothing is kept")
    largest = words.parse_args().largest
    torch.set_num_threads(1)
    lines = []
    for kind, exchange, ranks in itertools.product(SCALES, EXCHANGES, RANKS):
        if ranks <= min(largest, EXCHANGES[exchange]):
            lines.append(measure(kind, exchange, ranks))
            print(json.dumps(lines[-1]), flush=True)
    if largest < RANKS[-1]:
        return 0
    RESULTS.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    put_between(PAGE, BEGIN, END, f"\n{table(lines)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
