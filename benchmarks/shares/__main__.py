"""Bytes that each rank reads to resume: python benchmarks/shares

Ranks with a small model save through the run's own saver, and as many or other ranks restore what they saved, at the
same ZeRO stage. Every rank reports from /proc/self/io what it read; then every tensor, and the weights that the model
computes with, must equal what was saved, bit for bit. Ranks are forks of this process, so that libraries are loaded
once. results/restore.jsonl gets a line for each case.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "restore.jsonl"
sys.path[0] = str(ROOT)
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "DEEPSPEED_LOG_LEVEL": "error"}

import torch  # noqa: E402

from benchmarks.kept import add_record, code_version, read_records  # noqa: E402
from benchmarks.step.sizes import engine_for  # noqa: E402
from mvlm.checkpoint.fencing import FencingToken  # noqa: E402
from mvlm.checkpoint.integrity import find_damage  # noqa: E402
from mvlm.checkpoint.layout import CHECKPOINTS, step_name  # noqa: E402
from mvlm.checkpoint.state import TrainState  # noqa: E402
from mvlm.config.load import load_config  # noqa: E402
from mvlm.pretrained.encoders import Vocabulary, build_recorded  # noqa: E402
from mvlm.runtime import dist  # noqa: E402
from mvlm.runtime.launch import free_port  # noqa: E402
from mvlm.training.checkpoint.resume import restore  # noqa: E402
from mvlm.training.checkpoint.save import Saver  # noqa: E402
from mvlm.training.engine import Engine  # noqa: E402
from mvlm.training.optim import count_parameters  # noqa: E402
from mvlm.training.zero.config import RunSide, resolve  # noqa: E402

STEP, PER_PARAMETER, LIMIT = 7, 12, 1.1
"""A step; bytes of a weight and its two moments; how many times its share a rank may read."""
OVERRIDES = (
    "model.image_size=64",
    "model.cross_depth=2",
    "model.cross_heads=4",
    "model.vision_args={patch_size=16, embed_dim=256, depth=2, num_heads=4}",
    "model.text_args={hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=1024}",
    "train.micro_batch=1",
    "train.global_batch=48",
)
CASES = [(0, 1, 2), (1, 2, 4), (2, 4, 1), (2, 2, 2), (3, 2, 3), (3, 4, 2)]
"""The ZeRO stage, and the number of ranks that save and that restore."""
MANY = [(stage, 4, ranks) for stage in (0, 1, 2, 3) for ranks in (8, 16)]


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--many", action="store_true", help="8 and 16 ranks too")
    words.add_argument("--bf16", action="store_true", help="the model computes in bf16, with fp32 masters")
    words.add_argument("--table", action="store_true", help="only print the table of results")
    words.add_argument("--results", type=Path, default=RESULTS)
    arguments = words.parse_args()
    if not arguments.table:
        for case in [*CASES, *(MANY if arguments.many else [])]:
            add_record(arguments.results, measure(*case, arguments.bf16))
    lines = read_records(arguments.results)
    print(table(lines))
    return 0 if all(line["share"] <= LIMIT for line in lines) else 1


def table(lines: list[dict[str, Any]]) -> str:
    rows = [
        "| ZeRO | saved by | restored by | precision | of a rank's share read | to verify |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        counts = f"| {line['stage']} | {line['saved']} | {line['ranks']} | {line['precision']} "
        rows.append(f"{counts}| {line['share']:.3f} | {line['verified']:.3f} |")
    return "\n".join(rows)


def measure(stage: int, saved: int, ranks: int, bf16: bool = False) -> dict[str, Any]:
    """The most that a rank read, as a share of 12 P / R bytes.

    Raises:
        RuntimeError: a tensor is not what was saved.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        written = on_ranks(saved, lambda: save(run, stage, bf16))
        read = on_ranks(ranks, lambda: restored(run, stage, bf16))
    if {found["digest"] for found in read} != {written[0]["digest"]}:
        raise RuntimeError(f"Stage {stage}, from {saved} ranks to {ranks}: a tensor is not what was saved.")
    share = PER_PARAMETER * written[0]["parameters"] / ranks
    return {
        "stage": stage,
        "saved": saved,
        "ranks": ranks,
        "precision": "bf16" if bf16 else "fp32",
        "parameters": written[0]["parameters"],
        "share": max(found["read"] for found in read) / share,
        "verified": max(found["verified"] for found in read) / share,
        "commit": code_version(),
    }


def on_ranks(count: int, act: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """Run `act` on so many forked ranks; returns what each finds."""
    port = free_port()
    children = []
    for rank in range(count):
        reading, writing = os.pipe()
        if not (child := os.fork()):
            try:
                os.close(reading)
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                dist.init()
                found = act()
                dist.barrier()
                dist.close()
                os.write(writing, pickle.dumps(found))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writing)
        children.append((child, reading))
    found = []
    for child, reading in children:
        with os.fdopen(reading, "rb") as pipe:
            found.append(pipe.read())
        os.waitpid(child, 0)
    if not all(found):
        raise RuntimeError("A rank failed: its message is above.")
    return [pickle.loads(content) for content in found]


def engine_of(stage: int, bf16: bool, seed: int) -> Engine:
    """The engine of a run."""
    config = load_config(ROOT / "mvlm/configs/tiny.toml", [*OVERRIDES, f"run.seed={seed}"])
    model, weights = build_recorded(config.blueprint, Vocabulary(2000, 1))
    content: dict[str, Any] = {"zero_optimization": {"stage": stage}} | ({"bf16": {"enabled": True}} if bf16 else {})
    side = RunSide(("json", "toml"), "", config.train, config.optim, dist.world(), (10, 2), count_parameters(model))
    return engine_for(model, config, resolve(content, side), weights)


def save(run: Path, stage: int, bf16: bool) -> dict[str, Any]:
    """Save weights and moments, each drawn by its name."""
    engine = engine_of(stage, bf16, seed=0)
    engine.prepare_state(STEP)
    engine.updates = STEP
    for name, parameter in engine.parameters():
        draw = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        keys = ("weight", "exp_avg", "exp_avg_sq")
        engine.write(parameter, {key: torch.rand(shape, generator=draw) for key in keys})
    saver = Saver(engine, run, load_config(ROOT / "mvlm/configs/tiny.toml", []).checkpoint, FencingToken(run))
    saver.start(TrainState(STEP, STEP * 16, 0, "shards", updates=STEP))
    saver.finish()
    return {"digest": digest(engine), "parameters": count_parameters(engine.model)}


def restored(run: Path, stage: int, bf16: bool) -> dict[str, Any]:
    engine, checkpoint = engine_of(stage, bf16, seed=1), run / CHECKPOINTS / step_name(STEP)
    before = bytes_read()
    find_damage(checkpoint)
    verified = bytes_read() - before
    before = bytes_read()
    restore(engine, checkpoint)
    return {"read": bytes_read() - before - verified, "verified": verified, "digest": digest(engine)}


def bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def digest(engine: Engine) -> str:
    """A hash of all tensors, and of the weights that the model computes with."""
    found, whole = hashlib.sha256(), dict[tuple[str, str], bytes]()
    own = [
        (name, key, part.start, part.elements.detach().cpu().numpy().tobytes())
        for name, parts in engine.own_parts()
        for key, part in parts.items()
    ]
    for name, key, _, elements in sorted(piece for of_rank in dist.gather_objects(own) for piece in of_rank):
        whole[name, key] = whole.get((name, key), b"") + elements
    for (name, key), content in whole.items():
        found.update(f"{name} {key}".encode() + content)
    from deepspeed.runtime.zero import GatheredParameters

    for name, parameter in engine.parameters():
        with GatheredParameters([parameter], enabled=engine.stage == 3):
            found.update(name.encode() + parameter.detach().cpu().float().numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
