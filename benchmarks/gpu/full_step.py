"""The step at full size, eager, compiled and captured: python benchmarks/gpu/full_step.py FILE [--size full]

    python benchmarks/gpu/full_step.py FILE --size full --pairs 128 64 256

Each way has its own process and is a line of FILE:

- `forward and backward` of one batch, without DeepSpeed and optimiser;
- `update`: the engine's whole step with both, on batches with different captions, and the losses of its first steps.

Each is eager, with compiled blocks, or compiled and captured as CUDA graphs (mvlm/training/capture.py), as
`train.compile` has a run do it; the passes alone also eager by the fused kernels taken by name alone. Pairs a second,
MFU on the operations executed against the device's bf16 peak, the memory's peak beside what `mvlm plan` says, and the
host's time: until the call returns, and in seconds of its processor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor

from benchmarks.gpu.record import Line, Record, device, finish, seconds_left
from benchmarks.step.sizes import SIZES, Size, build, engine_for, make_batch
from benchmarks.step.variants import speed_up
from mvlm.batch import Batch
from mvlm.config.schema import Config, Kernels
from mvlm.data.samples.captions import COARSE, FINE, Rounding
from mvlm.model.flops import count_flops
from mvlm.model.maskvlm import MaskVLM
from mvlm.training.logging.mfu import peak_flops

DS_JSON = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1, "overlap_comm": True}}
WAYS = {
    ("forward and backward", "eager"): 20.0,
    ("update", "eager"): 25.0,
    ("forward and backward", "fused"): 25.0,
    ("update", "compiled"): 60.0,
    ("update", "captured"): 60.0,
    ("forward and backward", "compiled"): 60.0,
    ("forward and backward", "captured"): 60.0,
}
"""What is measured and how, in this order, and the seconds that must be left to begin it."""
FUSED = Kernels(attention="efficient", residual_norm="triton", layer_norm="triton", gelu_linear="triton")
GPU_ALONE = {"captured": "a CPU has no graphs to capture", "fused": "these kernels run only on GPUs"}
STEPS, WARM, BATCHES = 20, 3, 4
SECONDS = 15.0
"""No step is timed later than this."""


def configuration(size: Size, way: str) -> Config:
    """The configuration of a run that makes its steps in one of `WAYS`."""
    config, choices = size.config, {"compiled": True, "captured": "captured"}
    train = replace(config.train, compile=choices.get(way, False), global_batch=size.pairs)
    return replace(config, train=train, kernels=FUSED if way == "fused" else config.kernels)


def rounding(way: str) -> Rounding:
    """The sizes to which a run pads its batches."""
    return COARSE if way in ("compiled", "captured") else FINE


def measure(size: Size, kind: str, way: str) -> Line:
    step, batches, model = (prepare_update if kind == "update" else prepare_passes)(size, way)
    losses = [float(step(turn)) for turn in range(max(WARM, BATCHES))]  # compiles each batch's sizes
    finish()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    times, returned, host = [], [], []
    began = time.perf_counter()
    for turn in range(STEPS):
        wall, cpu = time.perf_counter(), time.process_time()
        step(turn)
        returned.append(time.perf_counter() - wall)
        host.append(time.process_time() - cpu)
        finish()
        times.append(time.perf_counter() - wall)
        if time.perf_counter() - began > SECONDS or seconds_left() < 8:
            break
    found: Line = {"seconds": median(times), "fastest": min(times), "steps": len(times), "losses": losses}
    found |= {"returned_seconds": median(returned), "host_cpu_seconds": median(host)}
    found["pairs_per_s"] = size.pairs / found["seconds"]
    if torch.cuda.is_available():
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found | executed(size, model, batches, found["pairs_per_s"])


def executed(size: Size, model: MaskVLM, batches: list[Batch], pairs_per_s: float) -> Line:
    """Operations per pair and MFU; counted uncompiled, after the memory's peak has been read."""
    with torch.compiler.set_stance("force_eager"):
        flops = count_flops(lambda: sum(model(batches[0]).values()).backward()) / size.pairs
    peak = peak_flops(torch.cuda.get_device_name(), True, False) if torch.cuda.is_available() else None
    return {"flops_per_pair": flops, "tflops": flops * pairs_per_s / 1e12} | (
        {"mfu": flops * pairs_per_s / peak} if peak else {}
    )


def prepare_passes(size: Size, way: str) -> tuple[Callable[[int], Tensor], list[Batch], MaskVLM]:
    """Forward and backward pass of one batch, in bf16, without an optimiser."""
    model = build(size).to(device(), torch.bfloat16)
    batch = make_batch(size, model.grid, rounding=rounding(way)).to(device())
    speed_up(model, configuration(size, way), kernels=True)

    def step(_: int) -> Tensor:
        model.zero_grad(set_to_none=True)
        total = torch.stack(list(model(batch).values())).sum()
        total.backward()
        return total.detach()

    return step, [batch], model


def prepare_update(size: Size, way: str) -> tuple[Callable[[int], Tensor], list[Batch], MaskVLM]:
    """The engine's step as a run makes it."""
    from mvlm.runtime import dist
    from mvlm.training.optim import count_parameters
    from mvlm.training.zero.config import RunSide, resolve

    dist.init()
    config, model = configuration(size, way), build(size)
    batches = [make_batch(size, model.grid, start=n * size.pairs, rounding=rounding(way)) for n in range(BATCHES)]
    side = RunSide(("json", "toml"), "", config.train, config.optim, 1, (1000, 10), count_parameters(model))
    engine = engine_for(model, config, resolve(DS_JSON, side))
    assert isinstance(engine.model, MaskVLM)
    return (
        lambda turn: torch.stack(list(engine.step([batches[turn % BATCHES]], 1e-3, turn).values())).sum(),
        [batches[0].to(device())],
        engine.model,
    )


def compile_quickly() -> None:
    """For rehearsing on a CPU: trace graphs, but generate no code, which would take minutes."""
    torch.compile = partial(torch.compile, backend="aot_eager")


def planned(size: Size) -> Line:
    """The peak memory that `mvlm plan` estimates for an update on one GPU."""
    from mvlm.estimate.cards import CARDS
    from mvlm.estimate.count import FakeModel
    from mvlm.estimate.plan import Planner, Request

    content = json.loads(json.dumps(DS_JSON))
    config, names = configuration(size, "eager"), ("json", "toml")
    request = Request(config.train, config.optim, content, names, "h100", CARDS["h100"], 1, 1, 10**6, 0.45)
    planner = Planner(request, FakeModel(build(size), config.data))
    memory = planner.memory(planner.zero, size.pairs)
    return {"planned_bytes": memory.total, "planned_in": memory.moment}


def one(words: argparse.Namespace) -> int:
    """Measure in this process, and print the line to standard output."""
    if not torch.cuda.is_available():
        compile_quickly()
    size = replace(SIZES[words.size], pairs=words.pairs[0])
    print(json.dumps(measure(size, words.kind, words.way)))
    return 0


def in_a_process(size: str, pairs: int, kind: str, way: str) -> Line:
    command = [sys.executable, __file__, "-", "--size", size, "--pairs", str(pairs), "--kind", kind, "--way", way]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, timeout=max(5.0, seconds_left())
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError("out of time") from None
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: see log.txt")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("file", type=Path)
    words.add_argument("--size", choices=SIZES, default="full")
    words.add_argument("--pairs", type=int, nargs="+", default=[128, 64, 256])
    words.add_argument("--kind", choices=sorted({kind for kind, _ in WAYS}), help="only this one, in this process")
    words.add_argument("--way", choices=sorted({way for _, way in WAYS}))
    arguments = words.parse_args()
    torch.set_num_threads(1)
    if arguments.kind:
        return one(arguments)
    record = Record(arguments.file)
    for pairs in arguments.pairs:
        size = replace(SIZES[arguments.size], pairs=pairs)
        record.attempt({"plan": pairs}, lambda size=size: planned(size))
        for (kind, way), needed in WAYS.items():
            name: dict[str, Any] = {"pairs": pairs, "kind": kind, "way": way}
            if way in GPU_ALONE and not torch.cuda.is_available():
                record.add(**name, cannot=GPU_ALONE[way])
            elif seconds_left() < needed:
                record.add(**name, cannot="no time was left")
            else:
                record.attempt(name, lambda key=(kind, way), n=pairs: in_a_process(arguments.size, n, *key))
    return record.exit_code


if __name__ == "__main__":
    sys.exit(main())
