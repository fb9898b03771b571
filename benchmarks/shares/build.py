"""The memory that a rank takes to build a model under ZeRO stage 3: python benchmarks/shares/build.py

Ranks, forks of this process, divide a model that is only shapes, or build it whole. Each reports from /proc/self/status
how far its memory rose meanwhile, and compares every parameter of the divided model with the same one created whole,
bit for bit. results/build.jsonl gets a line for each case.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[2])

import torch  # noqa: E402

from benchmarks.kept import add_record, code_version, read_records  # noqa: E402
from benchmarks.shares.__main__ import ROOT, on_ranks  # noqa: E402
from mvlm.config.load import load_config  # noqa: E402
from mvlm.model.initialization import InitialWeights  # noqa: E402
from mvlm.pretrained.encoders import Vocabulary, build_recorded  # noqa: E402
from mvlm.runtime import dist  # noqa: E402
from mvlm.training.optim import count_parameters  # noqa: E402
from mvlm.training.zero.config import RunSide, resolve  # noqa: E402
from mvlm.training.zero.divide import divide  # noqa: E402
from mvlm.training.zero.start import import_deepspeed  # noqa: E402

M_MMAP_THRESHOLD = -3  # from glibc's malloc.h
RESULTS = Path(__file__).parent / "results" / "build.jsonl"
OVERRIDES = (
    "model.image_size=64",
    "model.cross_depth=2",
    "model.cross_heads=8",
    "model.vision_args={patch_size=16, embed_dim=512, depth=6, num_heads=8}",
    "model.text_args={hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048}",
    "train.micro_batch=1",
    "train.global_batch=48",
)

SMALL = (
    "model.vision_args={patch_size=16, embed_dim=32, depth=6, num_heads=8}",
    "model.text_args={hidden_size=32, num_hidden_layers=4, num_attention_heads=8, intermediate_size=128}",
)


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    words.add_argument("--table", action="store_true", help="only print the table of results")
    arguments = words.parse_args()
    for ranks, divided in [] if arguments.table else [(1, False), *((ranks, True) for ranks in arguments.ranks)]:
        found = on_ranks(ranks, partial(rise, divided))
        line = {"ranks": ranks, "divided": divided, **found[0], "rise": max(each["rise"] for each in found)}
        add_record(RESULTS, line | {"commit": code_version()})
    print(table(read_records(RESULTS)))
    return 0


def table(lines: list[dict[str, Any]]) -> str:
    rows = ["| ranks | built | memory rose by | a share | a share and the largest parameter |", "|---|---|---|---|---|"]
    for line in lines:
        share = 4 * line["parameters"] / line["ranks"]
        sizes = (line["rise"], share, share + 4 * line["largest"])
        how = "divided" if line["divided"] else "whole"
        rows.append(f"| {line['ranks']} | {how} | " + " | ".join(f"{size / 1e6:.0f} MB" for size in sizes) + " |")
    return "\n".join(rows)


def rise(divided: bool) -> dict[str, Any]:
    """How far this rank's memory rose, in bytes, above what it had.

    Raises:
        RuntimeError: a parameter differs from the one created whole.
    """
    import_deepspeed()  # so that its memory does not count as the model's
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)  # glibc raises it, and then keeps freed memory
    make_model((*OVERRIDES, *SMALL), divided)  # loads the code and makes the connections that any model needs
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    model, weights = make_model(OVERRIDES, divided)
    found = memory("VmHWM") - before
    largest = max(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    facts = {"parameters": count_parameters(model), "largest": largest}
    from deepspeed.runtime.zero import GatheredParameters

    for name, parameter in model.named_parameters():
        with GatheredParameters([parameter], enabled=divided):
            if not torch.equal(parameter.detach(), weights.whole(name)):
                raise RuntimeError(f"{name} differs from the parameter created whole.")
    return facts | {"rise": found}


def make_model(settings: tuple[str, ...], divided: bool) -> tuple[torch.nn.Module, InitialWeights]:
    """A model, and its initial weights."""
    config = load_config(ROOT / "mvlm/configs/tiny.toml", [*settings])
    model, weights = build_recorded(config.blueprint, Vocabulary(16000, 1))
    side = RunSide(("json", "toml"), "", config.train, config.optim, dist.world(), (10, 2), count_parameters(model))
    if divided:
        divide(model, weights, resolve({"zero_optimization": {"stage": 3}}, side))
    else:
        weights.materialize()
    return model, weights


def memory(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(kind)))


if __name__ == "__main__":
    sys.exit(main())
