"""Memory of one rank's part of the contrastive loss, by ring and by gather.

python benchmarks/kernels/contrast_memory.py    # keeps results/contrast/memory.json and a table on docs/kernels.md

One process is a rank of 4 to 4,096 ranks with 256 pairs each; the others' features are made when they would arrive.
Bytes are those of all tensors that are alive at once, features and gradients of the own pairs included.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from mvlm.batch import Encoded
from mvlm.model.losses.itc import Blocks, Peers, contrast_pairs
from mvlm.runtime.live_memory import LiveMemory

PAGE = Path(__file__).parents[2] / "docs/kernels.md"
RESULTS = Path(__file__).parent / "results/contrast/memory.json"
BEGIN, END = "<!-- table of contrast_memory -->\n", "\n<!-- end of contrast_memory -->"
PAIRS, WIDTH = 256, 256
RANKS = (4, 16, 64, 256, 1024, 4096)
GATHERED = 256
"""Ranks up to which the gather is measured: more of them do not fit small machines."""
SCALES = {"softmax": (0.07, None), "sigmoid": (0.1, -10.0)}


def of_rank(rank: int) -> Encoded:
    generator = torch.Generator().manual_seed(rank)
    sides = (torch.nn.functional.normalize(torch.randn(PAIRS, WIDTH, generator=generator), dim=-1) for _ in "ab")
    ids = torch.arange(PAIRS) + rank * PAIRS
    return Encoded(*sides, ids, ids)


def tensors(rank: int, like: list[Tensor]) -> list[Tensor]:
    """What a rank sends where the own one sends `like`: features and identities, or log-sum-exps."""
    if len(like) == 1:
        return [like[0].clone()]
    pairs = of_rank(rank)
    return [pairs.image_BE, pairs.text_BE, torch.stack([pairs.image_id_B, pairs.caption_id_B], 1)]


class SimulatedRing:
    def __init__(self, own: list[Tensor], ranks: int) -> None:
        self.own, self.ranks = own, ranks

    def __iter__(self) -> Iterator[tuple[int, list[Tensor]]]:
        block = self.own
        for turn in range(self.ranks):
            coming = tensors(turn + 1, self.own) if turn + 1 < self.ranks else []
            yield (-PAIRS if turn else 0), block
            block = coming


def measure(kind: str, by: str, ranks: int) -> dict[str, Any]:
    temperature, bias = (None if value is None else torch.tensor([value]) for value in SCALES[kind])
    assert temperature is not None

    def gather(own: list[Tensor]) -> Blocks:
        everybody = [own, *(tensors(rank, own) for rank in range(1, ranks))]
        return [(0, [torch.cat(parts) for parts in zip(*everybody, strict=True)])]

    def ring(own: list[Tensor]) -> Blocks:
        return SimulatedRing(own, ranks)

    gc.collect()
    began = time.perf_counter()
    with LiveMemory() as memory:
        peers = Peers(ring if by == "ring" else gather, count=ranks)
        contrast_pairs(of_rank(0), temperature, bias, True, peers)
    seconds = time.perf_counter() - began
    return {"kind": kind, "by": by, "ranks": ranks, "pairs": ranks * PAIRS, "bytes": memory.peak, "seconds": seconds}


def table(lines: list[dict[str, Any]]) -> str:
    found = {(line["kind"], line["by"], line["ranks"]): line["bytes"] for line in lines}
    columns = [(kind, by) for kind in SCALES for by in ("ring", "gather")]
    head = "| pairs in the global batch | ranks | " + " | ".join(f"{kind}, {by}" for kind, by in columns) + " |"
    rows = [
        f"| {ranks * PAIRS:,} | {ranks:,} | "
        + " | ".join(
            f"{found[*column, ranks] / 2**20:.1f} MiB" if (*column, ranks) in found else "-" for column in columns
        )
        + " |"
        for ranks in RANKS
    ]
    return "\n".join([head, "|---|---|" + "---|" * len(columns), *rows])


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--largest", type=int, default=RANKS[-1], help="ranks to stop at; less than all keeps nothing")
    largest = words.parse_args().largest
    torch.set_num_threads(1)
    lines = []
    for kind in SCALES:
        for by in ("ring", "gather"):
            for ranks in RANKS:
                if ranks <= (largest if by == "ring" else min(largest, GATHERED)):
                    lines.append(measure(kind, by, ranks))
                    print(json.dumps(lines[-1]), flush=True)
    if largest < RANKS[-1]:
        return 0
    RESULTS.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(lines)}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
