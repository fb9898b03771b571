"""What a step costs on the host: python benchmarks/host --against COMMIT

The model at its full depth but 16 wide, on one rank, through the real engine: arithmetic is negligible, and the CPU
seconds of a step are Python, torch's dispatcher and DeepSpeed. Each trial adds a line to results/host.jsonl.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("MVLM_HOST_ROOT") or Path(__file__).parents[2])
RESULTS = Path(__file__).parent / "results" / "host.jsonl"
sys.path[0] = str(ROOT)  # in place of this folder; it may be another commit's, for comparison
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}

WIDTH, PAIRS, IMAGE, TOKENS = 16, 2, 32, 8
"""As little arithmetic as possible: an image is four patches."""
OF_A_GPU = ("kernels.attention=sdpa", "kernels.linear=torch")
"""The default on a GPU; a CPU's defaults would make more calls."""
CASES: dict[str, tuple[int, bool]] = {
    "stage 0, eager": (0, False),
    "stage 1, eager": (1, False),
    "stage 0, compiled": (0, True),
    "stage 1, compiled": (1, True),
}
"""The ZeRO stage, and whether blocks are compiled."""
GOALS = {"eager": 50.0, "compiled": 25.0}
PHASES = ("forward", "backward", "update", "rest")


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    words.add_argument("--steps", type=int, default=30, help="timed steps per trial (default: 30)")
    words.add_argument("--rounds", type=int, default=3, help="trials of each case (default: 3)")
    words.add_argument("--against", metavar="COMMIT", help="measure that commit too, in turns")
    words.add_argument("--table", action="store_true", help="only print the table of results")
    words.add_argument("--results", type=Path, default=RESULTS)
    words.add_argument("--trial", choices=CASES, help=argparse.SUPPRESS)
    arguments = words.parse_args()
    if arguments.trial:
        print(json.dumps(trial(arguments.trial, arguments.steps)))
        return 0
    if not arguments.table:
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        with checkouts(arguments.against) as roots, arguments.results.open("a") as kept:
            for _ in range(arguments.rounds):
                for case in arguments.cases:
                    for root in roots:
                        found = in_a_process(root, case, arguments.steps)
                        print(found, flush=True)
                        print(json.dumps(found), file=kept, flush=True)
    print(table([json.loads(line) for line in arguments.results.read_text().splitlines()]))
    return 0


@contextmanager
def checkouts(against: str | None) -> Iterator[list[Path]]:
    """This tree, preceded by one of commit `against`, if any."""
    here = Path(__file__).parents[2]
    if against is None:
        yield [here]
        return
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        git(here, "worktree", "add", "--detach", str(other), against)
        try:
            yield [other, here]
        finally:
            git(here, "worktree", "remove", "--force", str(other))


def in_a_process(root: Path, case: str, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--trial", case, "--steps", str(steps)]
    environment = os.environ | {"MVLM_HOST_ROOT": str(root), "PYTHONPATH": str(root)}
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    changed = git(root, "status", "--porcelain", "--", "mvlm", __file__ if root in Path(__file__).parents else "mvlm")
    commit = git(root, "rev-parse", "--short=9", "HEAD") + ("-dirty" if changed else "")
    return {"case": case, "commit": commit} | json.loads(ended.stdout.splitlines()[-1])


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()


def trial(case: str, steps: int) -> dict[str, Any]:
    """Median CPU milliseconds of a step's phases, and how many operators it calls."""
    import deepspeed
    import torch

    torch.set_num_threads(1)
    stage, compiled = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        engine, batch = make_engine(stage, compiled, folder)
        clock = Clock(engine)
        times = [clock.time(lambda number=number: engine.step([batch], 0.5, number)) for number in range(steps + 2)][2:]
        # Last, since after a counted step compiled blocks have more guards to check.
        operators = count_operators(lambda number: engine.step([batch], 0.5, number))
        found = {phase: round(1000 * statistics.median(one[phase] for one in times), 2) for phase in PHASES}
        whole = [sum(one.values()) for one in times]
        return {
            "ms": found | {"whole": round(1000 * statistics.median(whole), 2), "least": round(1000 * min(whole), 2)},
            "loader_ms": loader_handover(Path(folder)),
            "operators": operators,
            "parameters": len(list(engine.model.parameters())),
            "steps": steps,
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "deepspeed": deepspeed.__version__,
            "cpu": cpu_name(),
            "load": os.getloadavg()[0],
        }


def make_engine(stage: int, compiled: bool, folder: str) -> tuple[Any, Any]:
    """An engine as in a run, and a micro-batch."""
    from benchmarks.step.sizes import Size, build, make_batch
    from mvlm.runtime import dist
    from mvlm.runtime.cpu import keep_freed_memory
    from mvlm.training.parallelize import parallelize
    from mvlm.training.zero.config import RunSide, resolve

    keep_freed_memory()
    dist.init()
    text = f"hidden_size={WIDTH}, num_attention_heads=2, intermediate_size={4 * WIDTH}, max_position_embeddings=64"
    overrides = (
        f"model.vision_args={{embed_dim={WIDTH}, num_heads=2}}",
        f"model.text_args={{{text}}}",
        f"model.image_size={IMAGE}",
        "model.cross_heads=2",
        f"model.contrastive_width={WIDTH}",
        f"objectives.itm_group={PAIRS}",
        "objectives.image_mask_block=1",
        f"data.text_length={TOKENS}",
        f"train.compile={str(compiled).lower()}",
        f"train.global_batch={PAIRS}",
        *OF_A_GPU,
        *(() if compiled else ("kernels.gelu_linear=recomputed",)),
    )
    size = Size("host", overrides, vocabulary=500, pairs=PAIRS)
    model, config = build(size), size.config
    batch = make_batch(size, model.grid)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    side = RunSide(("json", "toml"), folder, config.train, config.optim, 1, (100, 10), parameters)
    resolved = resolve({"zero_optimization": {"stage": stage}}, side)
    parts = {"train": config.train, "kernels": config.kernels, "optim": config.optim, "objectives": config.objectives}
    return parallelize(model, resolved, **parts, seed=0), batch


class Clock:
    """CPU seconds of a step by phase; the update begins when DeepSpeed's backward returns."""

    def __init__(self, engine: Any) -> None:
        self._spent = dict.fromkeys(("forward", "backward"), 0.0)
        self._updated, self._after_backward = 0.0, 0.0
        inner = engine.engine
        inner.forward, inner.backward = self._timed("forward", inner.forward), self._timed("backward", inner.backward)
        step = inner.step

        def update(*args: Any, **kwargs: Any) -> Any:
            found = step(*args, **kwargs)
            self._updated = time.process_time() - self._after_backward
            return found

        inner.step = update

    def time(self, step: Callable[[], object]) -> dict[str, float]:
        self._spent = dict.fromkeys(self._spent, 0.0)
        began = time.process_time()
        step()
        whole = time.process_time() - began
        spent = self._spent | {"update": self._updated}
        return spent | {"rest": whole - sum(spent.values())}

    def _timed(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            found = call(*args, **kwargs)
            self._after_backward = time.process_time()
            self._spent[phase] += self._after_backward - began
            return found

        return timed


def count_operators(step: Callable[[int], object]) -> int:
    """The operators that torch's dispatcher calls in the third step, not counting those that others are composed of."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        called = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.called += 1
            return func(*args, **(kwargs or {}))

    for number in range(2):
        step(number)
    with Count() as count:
        step(2)
    gc.collect()
    return count.called


def loader_handover(folder: Path) -> float:
    """Median CPU milliseconds that the training thread takes to fetch a micro-batch that the loader has ready."""
    import torch

    from data_tools.__main__ import main as data_tools
    from mvlm.config.schema import Data, Objectives
    from mvlm.data.loading.loader import Loader
    from mvlm.data.loading.sampler import make_sampler, order_of
    from mvlm.data.samples.pairs import PairDataset
    from mvlm.data.samples.tokenizer import train_tokenizer
    from mvlm.data.shards.mixture import Mixture

    with open(os.devnull, "w") as nowhere:
        saved, sys.stdout = sys.stdout, nowhere
        try:
            data_tools(["synth", "--task", "caption", "--count", "200", "--out", str(folder / "shards")])
        finally:
            sys.stdout = saved
    tokenizer, data = train_tokenizer(["red circle top left, blue star bottom right"] * 5, 300), Data()
    objectives = Objectives(image_mask_block=1, itm_group=PAIRS)
    dataset = PairDataset(Mixture([folder / "shards"]), tokenizer, data, objectives, IMAGE, 0, (2, 2))
    sampler = make_sampler(dataset.mixture, 0, [order_of(data)])
    times = []
    with Loader(dataset, sampler, global_batch=PAIRS, micro_batch=PAIRS) as loader:
        for _ in range(40):
            loader.ready()
            began = time.thread_time()
            assert loader.ready(0.0)
            for batch in next(loader):
                batch.to(torch.device("cpu"))
            times.append(time.thread_time() - began)
    return round(1000 * statistics.median(times), 3)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: a row for each case and commit, with medians over the trials."""
    rows = ["| case | commit | " + " | ".join((*PHASES, "whole", "goal", "operators", "loader hand-over")) + " |"]
    rows.append("| --- " * (len(PHASES) + 6) + "|")
    for case in CASES:
        for commit in dict.fromkeys(one["commit"] for one in found):
            own = [one for one in found if (one["case"], one["commit"]) == (case, commit)]
            if not own:
                continue
            ms = [statistics.median(one["ms"][phase] for one in own) for phase in (*PHASES, "whole")]
            cells = [case, commit, *(f"{each:.1f}" for each in ms), f"{GOALS[case.split(', ')[1]]:.0f}"]
            handover = statistics.median(one["loader_ms"] for one in own)
            rows.append("| " + " | ".join([*cells, str(own[-1]["operators"]), f"{handover:.2f}"]) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
