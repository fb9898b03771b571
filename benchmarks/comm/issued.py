"""What one step really sends: python benchmarks/comm/issued.py --ranks 2 4 8

Runs a small model through the real engine, DeepSpeed included, on that many gloo ranks of this machine, with
torch.distributed's collectives hooked. Records in results/gloo.json how often each is called in a step and with how
many bytes, and what share of the gradients is there at each of their reductions, under every ZeRO stage and with some
of DeepSpeed's switches.
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
    "stage 1, late": {"stage": 1, "overlap_comm": False},
    "stage 1, no scatter": {"stage": 1, "reduce_scatter": False},
    "stage 3": {"stage": 3, "stage3_param_persistence_threshold": 0},
}
SMALL = 1_000
"""Up to this many elements, a reduction is one of norms and counts."""
REDUCTIONS = ("all_reduce", "reduce", "reduce_scatter_tensor")
WHOLE = {  # collective -> position of the argument that covers all ranks' results
    "all_reduce": 0,
    "reduce": 0,
    "broadcast": 0,
    "all_gather_into_tensor": 0,
    "reduce_scatter_tensor": 1,
}


class Issued:
    """Counts calls and bytes by collective while `counting`; create it before anything imports torch's functions.

    Attributes:
        when: for each reduction of gradients, the share of the gradients that are there when it is called.
    """

    def __init__(self) -> None:
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
                if self._there and name in REDUCTIONS and tensor.is_floating_point() and tensor.numel() > SMALL:
                    self.when.append(round(self._there / self._gradients, 3))
            return function(*args, **kwargs)

        setattr(torch_dist, name, counted)

    def watch(self, model: torch.nn.Module) -> None:
        """Reset all counts, and count this model's gradients as backward makes them."""
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.when: list[float] = []
        self._there, self._gradients = 0, sum(parameter.numel() for parameter in model.parameters())

        def arrived(parameter: torch.Tensor) -> None:
            if self._counts:
                self._there += sizes[id(parameter)]

        sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}  # stage 3 empties parameters
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(arrived)

    @contextmanager
    def counting(self) -> Iterator[None]:
        self._counts = True
        yield
        self._counts = False


def one_rank(rank: int, world: int, port: int, cases: list[str], folder: str) -> None:
    """Run two steps of each case; rank 0 writes what it issued in the second."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_PORT=str(port))
    torch.set_num_threads(1)
    issued = Issued()
    from mvlm.runtime import dist

    dist.init()
    for number, case in enumerate(cases):
        found = _step(case, issued, world, folder)
        if rank == 0:
            (Path(folder) / f"{number}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.close()


def _step(case: str, issued: Issued, world: int, folder: str) -> dict[str, Any]:
    from benchmarks.step.sizes import SIZES, build, engine_for, make_batch
    from mvlm.config.load import load_config
    from mvlm.training.zero.config import RunSide, resolve

    size = SIZES["tiny"]
    model = build(size)
    batch = make_batch(size, model.grid)
    given = [f"train.global_batch={len(batch) * world}", f"train.micro_batch={len(batch)}"]
    config = load_config(Path(__file__).parents[2] / "mvlm/configs/base.toml", [*size.overrides, *given])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    zero = {"overlap_comm": True, "reduce_bucket_size": BUCKET} | CASES[case]
    run = RunSide(("json", "toml"), folder, config.train, config.optim, world, (100, 10), parameters)
    resolved = resolve({"zero_optimization": zero, "bf16": {"enabled": True}}, run)
    issued.watch(model)
    engine = engine_for(model, config, resolved)
    engine.step([batch], 0.5, 0)
    with issued.counting():
        engine.step([batch], 0.5, 1)
    return {
        "case": case,
        "ranks": world,
        "pairs": len(batch),
        "width": model.image_projection.linear.out_features,
        "parameters": parameters,
        "groups": len(engine.engine.optimizer.param_groups),
        "calls": dict(issued.calls),
        "bytes": dict(issued.bytes),
        "when": issued.when,
    }


def issued_by(cases: list[str], world: int) -> list[dict[str, Any]]:
    """What rank 0 of `world` ranks issues in a step, for each case."""
    from tests.conftest import free_port

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            one_rank, (world, free_port(), cases, folder), nprocs=world, start_method="forkserver"
        )
        return [json.loads((Path(folder) / f"{number}.json").read_text()) for number in range(len(cases))]


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--ranks", nargs="+", type=int, default=[2, 4, 8])
    arguments = words.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for world in arguments.ranks:
        known = [one["case"] for one in kept if one["ranks"] == world]
        if missing := [case for case in CASES if case not in known]:
            kept += issued_by(missing, world)
            print(*kept[-len(missing) :], sep="\n", flush=True)
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
