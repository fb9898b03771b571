"""Planned against measured on several ranks: python benchmarks/plan/ranks.py --ranks 1 2 4 8 16

Real ranks of the engine, DeepSpeed included, step together on this machine over gloo, in a network namespace of their
own (as root). Of the rank that takes most, the memory of the second step's peak, followed tensor by tensor; and of all
ranks, the bytes that the namespace's loopback carried in the steps after it. Beside them stands what `mvlm plan` has
for so many ranks: memory, and bytes by what each collective sends. A line a case is kept in results/ranks.jsonl,
which a later call goes on with; the table is written into README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}

import torch
import torch.distributed as torch_dist

from benchmarks.plan.compare import README, engine_for
from benchmarks.step.sizes import ROOT, Size, build, make_batch, overrides
from mvlm.estimate.cards import CARDS
from mvlm.estimate.count import FakeModel
from mvlm.estimate.memory import contrastive_bytes, peak
from mvlm.estimate.plan import Planner, Request
from mvlm.runtime import dist
from mvlm.runtime.live_memory import LiveMemory
from mvlm.training.engine import Engine
from mvlm.training.span import exchange_bytes
from mvlm.training.zero.config import RunSide, resolve
from mvlm.training.zero.memory import states
from tests.ranks import run_ranks

RESULTS = Path(__file__).parent / "results" / "ranks.jsonl"
WIDE = Size(
    "wide",
    (*overrides(256, 3, 2, vision=", patch_size=8"), "model.image_size=32", "objectives.itm_group=4"),
    vocabulary=2000,
    pairs=4,
)
STEPS = 3
"""Whose bytes are counted."""
BEGIN, END = "<!-- table of ranks.py -->\n", "<!-- end of ranks.py -->"


@dataclass(frozen=True)
class Case:
    """One layout of a step of `WIDE`."""

    ranks: int
    stage: int
    precision: str = "bf16"
    accumulation: int = 1
    recompute: float = 0.0

    @property
    def words(self) -> tuple[str, ...]:
        batch = f"train.global_batch={WIDE.pairs * self.accumulation * self.ranks}", f"train.micro_batch={WIDE.pairs}"
        return (*batch, f"train.recompute={self.recompute}")

    @property
    def content(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage, "overlap_comm": True}
        return {"zero_optimization": zero, "bf16": {"enabled": self.precision == "bf16"}}


def cases(ranks: int) -> list[Case]:
    """Every stage; then what else changes memory or bytes, where there are two ranks or four."""
    every = [Case(ranks, stage) for stage in range(4)]
    if ranks in (2, 4):
        every += [Case(ranks, stage, recompute=1.0) for stage in (1, 3)]
        every += [Case(ranks, stage, accumulation=2) for stage in (1, 2, 3)]
        every += [Case(ranks, stage, precision="fp32") for stage in (0, 1, 3)]
    return every


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    words.add_argument("--table", action="store_true", help="print what is kept, and measure nothing")
    asked = words.parse_args()
    if not asked.table:
        if "IN_A_NAMESPACE" not in os.environ:
            again = ["unshare", "--net", sys.executable, *sys.argv]
            return subprocess.run(again, env=os.environ | {"IN_A_NAMESPACE": "1"}, check=False).returncode
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for ranks in asked.ranks:
            measure(ranks)
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{table(lines)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


def measure(ranks: int) -> None:
    """What is not kept yet of so many ranks."""
    kept = [json.loads(line)["case"] for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    missing = [case for case in cases(ranks) if dataclasses.asdict(case) not in kept]
    commit = subprocess.run(["git", "describe", "--always", "--exclude=*", "--dirty"], cwd=ROOT, capture_output=True)
    for case in missing:
        with tempfile.TemporaryDirectory() as folder:
            done = run_ranks(one_rank, case, Path(folder), ranks=ranks, timeout=1500)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]
        line = {"case": dataclasses.asdict(case)}
        line |= {"memory": max(each["memory"] for each in found), "bytes": found[0]["bytes"] / ranks}
        line |= {"commit": commit.stdout.decode().strip(), "torch": torch.__version__}
        print(line, flush=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            print(json.dumps(line), file=file)


def planned(case: Case) -> tuple[float, float]:
    """Memory of a rank, and the bytes of a step that a rank hands to others."""
    size = dataclasses.replace(WIDE, overrides=(*WIDE.overrides, *case.words))
    config = size.config
    names, card = ("json", "toml"), CARDS["h100"]
    request = Request(config.train, config.optim, case.content, names, "h100", card, 1, case.ranks, 10_000, 0.4)
    model = build(size)
    planner = Planner(request, FakeModel(model, config.data, optim=config.optim))
    step = planner.step(planner.zero, case.ranks, WIDE.pairs, case.accumulation)
    # Its own is of a GPU: on a CPU operations take other ways for other shapes.
    here, span = FakeModel(model, config.data, "cpu", config.optim), planner.span(WIDE.pairs)
    zero, tokens = planner.zero, [number * planner.zero.element for number in here.token_numbers]
    memory = peak(
        here.moments_of(WIDE.pairs, zero.element, config.train.recompute, span != (1, 1)),
        states(here.total, zero, case.ranks, case.accumulation),
        contrastive_bytes(here, WIDE.pairs * case.accumulation, case.ranks),
        WIDE.pairs,
        exchange_bytes(span, WIDE.pairs, (tokens[0], tokens[1])),
    )
    sent = step.sent
    if case.stage == 3:  # gloo has no reduce-scatter: it all-reduces, which is twice as much
        sent += here.total * zero.element * case.accumulation
    return memory.total, sent * (1 - 1 / case.ranks)


def one_rank(case: Case, folder: Path) -> int:
    """As one rank: the second step's memory, and what the loopback carries in those after it."""
    torch.set_num_threads(1)
    dist.init()
    size = dataclasses.replace(WIDE, overrides=(*WIDE.overrides, *case.words))
    memory = LiveMemory()
    with memory:
        engine, batches = engine_of(case, size, str(folder))
        engine.step(batches, 0.5, 0)
        gc.collect()
        memory.peak = memory.live
        engine.step(batches, 0.5, 1)
        peak = memory.peak
    before = carried()
    for number in range(STEPS):
        engine.step(batches, 0.5, 2 + number)
    found = {"memory": peak, "bytes": (carried() - before) / STEPS}
    (folder / f"{dist.rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    return 0


def engine_of(case: Case, size: Size, folder: str) -> tuple[Engine, Any]:
    config, model = size.config, build(size)
    share = case.accumulation * WIDE.pairs
    first = dist.rank() * share
    batches = [
        make_batch(size, model.grid, WIDE.pairs, config.data.text_length, start=first + part * WIDE.pairs)
        for part in range(case.accumulation)
    ]
    count = sum(parameter.numel() for parameter in model.parameters())
    side = RunSide(("json", "toml"), folder, config.train, config.optim, dist.world(), (100, 10), count)
    return engine_for(model, size, resolve(case.content, side)), batches


def carried() -> float:
    """Bytes so far, once every rank has come here."""
    torch_dist.barrier()
    lines = Path("/proc/net/dev").read_text().splitlines()
    count = float(next(line for line in lines if line.strip().startswith("lo:")).split()[9])
    torch_dist.barrier()
    return count


def table(lines: list[dict[str, Any]]) -> str:
    rows = ["| ranks | ZeRO | | planned MB | measured MB | | planned MB sent | measured MB sent | |", "|---" * 9 + "|"]
    for line in lines:
        case = Case(**line["case"])
        kinds = [case.precision, f"{case.accumulation} micro-batches" if case.accumulation > 1 else ""]
        kinds += ["recomputed" if case.recompute else ""]
        pairs = zip(planned(case), (line["memory"], line["bytes"]), strict=True)
        cells = [f"{a / 1e6:.1f} | {b / 1e6:.1f} | {(a / b - 1) * 100:+.0f} %" if b > 1e5 else "| |" for a, b in pairs]
        rows.append(f"| {case.ranks} | {case.stage} | {', '.join(filter(None, kinds))} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
