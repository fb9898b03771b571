"""Planned against measured on several ranks: python benchmarks/plan/ranks.py --ranks 1 2 4 8 16

Real ranks of the engine, DeepSpeed included, step together on this machine over gloo, in a separate network namespace
(as root). Measured are the peak memory of the second step, tracked tensor by tensor, on the rank that takes most, and
the bytes that the namespace's loopback carried in the steps after it, for all ranks. They are compared with what `mvlm
plan` says for as many ranks: memory, and the bytes that each collective sends. If ranks split layers, the losses of all
steps are compared with those of as many ranks that do not. results/ranks.jsonl gets a line for each case, and cases
that it has are skipped; the tables are written into README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
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

from benchmarks.kept import add_record, code_version, put_between, read_records
from benchmarks.plan.compare import README
from benchmarks.step.sizes import Size, build, engine_for, make_batch, overrides
from mvlm.estimate.cards import CARDS
from mvlm.estimate.count import FakeModel
from mvlm.estimate.memory import contrastive_bytes, peak
from mvlm.estimate.plan import Planner, Request
from mvlm.runtime import dist, replicas
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
"""Steps whose bytes are counted."""
BEGIN, END = "<!-- table of ranks.py -->\n", "<!-- end of ranks.py -->"
SPLIT_BEGIN, SPLIT_END = "<!-- split layers of ranks.py -->\n", "<!-- end of split layers -->"


@dataclass(frozen=True)
class Case:
    """One layout of a step of `WIDE`; `split` ranks are a replica, which has the pairs of all of them.

    Attributes:
        offload: to the CPU's memory: "", "optimizer", or "all", which includes weights.
    """

    ranks: int
    stage: int
    precision: str = "bf16"
    accumulation: int = 1
    recompute: float = 0.0
    split: int = 1
    offload: str = ""

    @property
    def replicas(self) -> int:
        return self.ranks // self.split

    @property
    def pairs(self) -> int:
        """The pairs of a micro-batch."""
        return WIDE.pairs * self.split

    @property
    def words(self) -> tuple[str, ...]:
        batch = f"train.global_batch={WIDE.pairs * self.accumulation * self.ranks}", f"train.micro_batch={self.pairs}"
        return (*batch, f"train.recompute={self.recompute}")

    @property
    def content(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage, "overlap_comm": True}
        for name in {"": (), "optimizer": ("optimizer",), "all": ("optimizer", "param")}[self.offload]:
            zero[f"offload_{name}"] = {"device": "cpu"}
        content = {"zero_optimization": zero, "bf16": {"enabled": self.precision == "bf16"}}
        return content | ({"tensor_parallel": {"autotp_size": self.split}} if self.split > 1 else {})


def cases(ranks: int) -> list[Case]:
    """Every stage; then, for two or four ranks, whatever else changes memory or bytes."""
    every = [Case(ranks, stage) for stage in range(4)]
    if ranks in (2, 4):
        every += [Case(ranks, stage, recompute=1.0) for stage in (1, 3)]
        every += [Case(ranks, stage, accumulation=2) for stage in (1, 2, 3)]
        every += [Case(ranks, stage, precision="fp32") for stage in (0, 1, 3)]
        every += [Case(ranks, stage, offload="optimizer") for stage in (1, 2, 3)]
        every += [Case(ranks, 3, offload="all")]
    if ranks == 2:
        every += [Case(ranks, stage, accumulation=2, offload="optimizer") for stage in (1, 2, 3)]
        every += [Case(ranks, 1, precision="fp32", offload="optimizer"), Case(ranks, 3, "fp32", offload="all")]
    if ranks == 4:
        every += [Case(ranks, stage, precision="fp32", split=2) for stage in (0, 1)]
        every += [Case(ranks, 1, split=2)]
    return every


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    words.add_argument("--table", action="store_true", help="only write the tables of README.md")
    asked = words.parse_args()
    if not asked.table:
        if "IN_A_NAMESPACE" not in os.environ:
            again = ["unshare", "--net", sys.executable, *sys.argv]
            return subprocess.run(again, env=os.environ | {"IN_A_NAMESPACE": "1"}, check=False).returncode
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for ranks in asked.ranks:
            measure(ranks)
    lines = read_records(RESULTS)
    put_between(README, BEGIN, END, f"\n{table(lines)}\n\n")
    put_between(README, SPLIT_BEGIN, SPLIT_END, f"\n{split_table(lines)}\n\n")
    return 0


def measure(ranks: int) -> None:
    """Measure the cases of so many ranks that have no results yet."""
    kept = [Case(**line["case"]) for line in read_records(RESULTS)]
    missing = [case for case in cases(ranks) if case not in kept]
    for case in missing:
        with tempfile.TemporaryDirectory() as folder:
            done = run_ranks(one_rank, case, Path(folder), ranks=ranks, timeout=1500)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]
        line = {"case": dataclasses.asdict(case)}
        line |= {"memory": max(each["memory"] for each in found), "bytes": found[0]["bytes"] / ranks}
        line |= {"losses": found[0]["losses"]}
        line |= {"commit": code_version(), "torch": torch.__version__}
        print(line, flush=True)
        add_record(RESULTS, line)


@functools.cache
def models() -> tuple[FakeModel, FakeModel]:
    """`WIDE` as a GPU computes it, and as it is computed here, where some shapes use other implementations."""
    config, model = WIDE.config, build(WIDE)
    return FakeModel(model, config.data, optim=config.optim), FakeModel(model, config.data, "cpu", config.optim)


def planned(case: Case) -> tuple[float, float]:
    """The memory of a rank, and the bytes that it sends in a step."""
    size = dataclasses.replace(WIDE, overrides=(*WIDE.overrides, *case.words))
    config = size.config
    names, card = ("json", "toml"), CARDS["h100"]
    request = Request(config.train, config.optim, case.content, names, "h100", card, 1, case.ranks, 10_000, 0.4)
    elsewhere, here = models()
    planner = Planner(request, elsewhere)
    step = planner.step(planner.zero, case.replicas, case.pairs, case.accumulation)
    here, span = here.divided(case.split) if case.split > 1 else here, planner.span(case.pairs)
    zero, tokens = planner.zero, [number * planner.zero.element for number in here.token_numbers]
    held = states(here.total, zero, case.replicas, case.accumulation)
    memory = peak(
        here.moments_of(case.pairs, zero.element, config.train.recompute, span != (1, 1)),
        held,
        contrastive_bytes(here, case.pairs * case.accumulation, case.replicas),
        case.pairs,
        exchange_bytes(span, case.pairs, (tokens[0], tokens[1])),
    )
    sent = step.sent
    if case.stage == 3:  # gloo has no reduce-scatter: it all-reduces, which is twice as much
        sent += here.total * zero.element * case.accumulation
    sums = planner.model.sums(config.train.recompute, span != (1, 1)).elements if case.split > 1 else 0.0
    within = 2 * sums * case.pairs * zero.element * case.accumulation
    return memory.total + held.host, (sent - within) * (1 - 1 / case.replicas) + within * (1 - 1 / case.split)


def one_rank(case: Case, folder: Path) -> int:
    """Be one rank: measure the second step's memory, and what the loopback carries in the steps after it."""
    torch.set_num_threads(1)
    dist.init()
    replicas.arrange(case.split)
    size = dataclasses.replace(WIDE, overrides=(*WIDE.overrides, *case.words))
    memory = LiveMemory()
    with memory:
        engine, batches = engine_of(case, size, str(folder))
        losses = [engine.step(batches, 0.5, 0)]
        gc.collect()
        memory.peak = memory.live
        losses.append(engine.step(batches, 0.5, 1))
        peak = memory.peak
    before = carried()
    for number in range(STEPS):
        losses.append(engine.step(batches, 0.5, 2 + number))
    found = {"memory": peak, "bytes": (carried() - before) / STEPS}
    totals = torch.stack([engine.objectives.total(each) for each in losses])
    found["losses"] = (dist.all_reduce(totals) / dist.world()).tolist()
    (folder / f"{dist.rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    return 0


def engine_of(case: Case, size: Size, folder: str) -> tuple[Engine, Any]:
    config, model = size.config, build(size)
    first = replicas.rank() * case.accumulation * case.pairs
    batches = [
        make_batch(size, model.grid, case.pairs, config.data.text_length, start=first + part * case.pairs)
        for part in range(case.accumulation)
    ]
    count = sum(parameter.numel() for parameter in model.parameters())
    side = RunSide(("json", "toml"), folder, config.train, config.optim, replicas.world(), (100, 10), count)
    return engine_for(model, config, resolve(case.content, side)), batches


def carried() -> float:
    """The bytes that the loopback has carried so far, once every rank is here."""
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
        kinds += ["recomputed" if case.recompute else "", f"layers split by {case.split}" if case.split > 1 else ""]
        kinds += [{"": "", "optimizer": "optimizer offloaded", "all": "weights and optimizer offloaded"}[case.offload]]
        pairs = zip(planned(case), (line["memory"], line["bytes"]), strict=True)
        cells = [f"{a / 1e6:.1f} | {b / 1e6:.1f} | {(a / b - 1) * 100:+.0f} %" if b > 1e5 else "| |" for a, b in pairs]
        rows.append(f"| {case.ranks} | {case.stage} | {', '.join(filter(None, kinds))} | {' | '.join(cells)} |")
    return "\n".join(rows)


def split_table(lines: list[dict[str, Any]]) -> str:
    """Each layout that splits layers compared with the one that does not, if there are losses of both."""
    rows = ["| ranks | ZeRO | precision | memory | bytes sent | largest difference of a loss |", "|---" * 6 + "|"]
    kept = {Case(**line["case"]): line for line in lines if "losses" in line}
    for case, line in kept.items():
        if case.split > 1 and (plain := kept.get(dataclasses.replace(case, split=1))):
            differences = [abs(a / b - 1) for a, b in zip(line["losses"], plain["losses"], strict=True)]
            ratios = (f"x {line[name] / plain[name]:.2f}" for name in ("memory", "bytes"))
            layout = f"{case.replicas} x {case.split}"
            rows.append(
                f"| {layout} | {case.stage} | {case.precision} | {' | '.join(ratios)} | {max(differences):.1e} |"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
