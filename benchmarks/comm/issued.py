"""What one step really sends: python benchmarks/comm/issued.py --ranks 2 4

Runs a small model through the real engine, DeepSpeed included, on so many gloo ranks of this machine, with
torch.distributed's collectives hooked: how often each is called in a step and with how many bytes. Under every ZeRO
stage, and with DeepSpeed's `use_multi_rank_bucket_allreduce` off. Keeps the figures in results/gloo.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as torch_dist

RESULTS = Path(__file__).parent / "results" / "gloo.json"
BUCKET = 50_000  # elements: a few buckets a step
CASES: dict[str, dict[str, Any]] = {
    "stage 0": {"stage": 0},
    "stage 1": {"stage": 1},
    "stage 1, reduce": {"stage": 1, "use_multi_rank_bucket_allreduce": False},
    "stage 2": {"stage": 2},
    "stage 2, reduce": {"stage": 2, "use_multi_rank_bucket_allreduce": False},
    "stage 3": {"stage": 3, "stage3_param_persistence_threshold": 0},
}
WHOLE = {  # collective -> which of its arguments holds the bytes that all ranks' results are made of
    "all_reduce": 0,
    "reduce": 0,
    "broadcast": 0,
    "all_gather_into_tensor": 0,
    "reduce_scatter_tensor": 1,
}


class Issued:
    """Counts calls and bytes by collective while `counting`; made before anything takes hold of torch's functions."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._counts = False
        for name, place in WHOLE.items():
            self._hook(name, place)

    def _hook(self, name: str, place: int) -> None:
        function = getattr(torch_dist, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._counts:
                tensor = args[place] if len(args) > place else next(iter(kwargs.values()))
                self.calls[name] += 1
                self.bytes[name] += tensor.numel() * tensor.element_size()
            return function(*args, **kwargs)

        setattr(torch_dist, name, counted)

    @contextmanager
    def counting(self) -> Iterator[None]:
        self._counts = True
        yield
        self._counts = False


def one_rank(rank: int, world: int, port: int, case: str, bf16: bool, folder: str) -> None:
    """A rank's second step; rank 0 writes what it issued."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_PORT=str(port))
    torch.set_num_threads(1)
    issued = Issued()
    from benchmarks.step.sizes import SIZES, build, make_batch
    from mvlm.config.load import load_config
    from mvlm.runtime import dist
    from mvlm.training.parallelize import parallelize
    from mvlm.training.zero.config import RunSide, resolve

    dist.init()
    size = SIZES["tiny"]
    model = build(size)
    batch = make_batch(size, model.grid)
    given = [f"train.global_batch={len(batch) * world}", f"train.micro_batch={len(batch)}"]
    config = load_config(Path(__file__).parents[2] / "mvlm/configs/base.toml", [*size.overrides, *given])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    content = {"zero_optimization": CASES[case] | {"reduce_bucket_size": BUCKET}, "bf16": {"enabled": bf16}}
    parts = config.train, config.optim
    resolved = resolve(content, RunSide(("json", "toml"), folder, *parts, world, (100, 10), parameters))
    engine = parallelize(
        model,
        resolved,
        train=config.train,
        kernels=config.kernels,
        optim=config.optim,
        objectives=config.objectives,
        seed=0,
    )
    engine.step([batch], 0.5, 0)
    with issued.counting():
        engine.step([batch], 0.5, 1)
    if rank == 0:
        groups = len(engine.engine.optimizer.param_groups)
        found = {
            "case": case,
            "ranks": world,
            "bf16": bf16,
            "parameters": parameters,
            "groups": groups,
            "calls": dict(issued.calls),
            "bytes": dict(issued.bytes),
        }
        (Path(folder) / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.close()


def issued_by(case: str, world: int, bf16: bool = True) -> dict[str, Any]:
    """What rank 0 of so many issues in a step."""
    from tests.conftest import free_port

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            one_rank, (world, free_port(), case, bf16, folder), nprocs=world, start_method="forkserver"
        )
        return json.loads((Path(folder) / "found.json").read_text())


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--ranks", nargs="+", type=int, default=[2, 4, 8])
    words.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = words.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for world in arguments.ranks:
        for case in arguments.cases:
            if any((one["case"], one["ranks"]) == (case, world) for one in kept):
                continue
            kept.append(issued_by(case, world))
            print(kept[-1], flush=True)
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
