"""Single ranks of 64 of giant.toml: python benchmarks/shares/alone.py

One of many ranks begins the run, saves its share of a checkpoint, and restores it in another process, without the
others: torch's fake process group stands in for them, whose collectives return at once with this rank's data in place
of theirs. The checkpoint's other shares consist of their headers, which a rank reads too, and holes.

Each process reports how far its memory rose at most, and how many bytes it read and wrote. Ten tensors of the share are
compared with those created whole, one after another, and what is restored with what was saved, bit for bit.
results/alone.jsonl gets a line for each rank.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import hashlib
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "alone.jsonl"
sys.path[0] = str(ROOT)
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "DEEPSPEED_LOG_LEVEL": "error"}

import torch  # noqa: E402
import torch.distributed as torch_dist  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

from benchmarks.kept import add_record, code_version, read_records  # noqa: E402
from benchmarks.shares.__main__ import STEP, bytes_read  # noqa: E402
from benchmarks.shares.build import M_MMAP_THRESHOLD, memory  # noqa: E402
from benchmarks.step.sizes import engine_for  # noqa: E402
from mvlm.checkpoint.fencing import FencingToken  # noqa: E402
from mvlm.checkpoint.integrity import find_damage  # noqa: E402
from mvlm.checkpoint.layout import CHECKPOINTS, INDEX, STATE, Entry, step_name  # noqa: E402
from mvlm.checkpoint.state import TrainState  # noqa: E402
from mvlm.checkpoint.tensors import METADATA  # noqa: E402
from mvlm.config.load import load_config  # noqa: E402
from mvlm.estimate.encoders import without_weights  # noqa: E402
from mvlm.model.initialization import InitialWeights  # noqa: E402
from mvlm.pretrained.encoders import build_recorded  # noqa: E402
from mvlm.runtime import dist  # noqa: E402
from mvlm.training.checkpoint.resume import restore  # noqa: E402
from mvlm.training.checkpoint.save import Saver  # noqa: E402
from mvlm.training.engine import Engine  # noqa: E402
from mvlm.training.optim import count_parameters  # noqa: E402
from mvlm.training.zero.config import RunSide, resolve  # noqa: E402
from mvlm.training.zero.json_file import read_deepspeed_json  # noqa: E402
from mvlm.training.zero.start import import_deepspeed  # noqa: E402
from mvlm.training.zero.state import MOMENTS  # noqa: E402

PER_NODE = 8
NAMED = (
    "vision.vit.patch_embed.patch_embed.proj.weight",
    "vision.vit.blocks.0.attn.qkv.weight",
    "vision.vit.blocks.47.mlp.fc2.weight",
    "text.model.embeddings.word_embeddings.weight",
    "text.model.encoder.layer.0.attention.self.query.weight",
    "text.model.encoder.layer.23.output.dense.weight",
    "cross_image.blocks.5.feed_forward.0.weight",
    "cross_text.blocks.0.cross_attention.key_value.weight",
    "image_decoder.blocks.blocks.0.self_attention.out.weight",
    "match_head.align.weight",
)


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--of", type=int, default=64, help="ranks of the run (default: 64)")
    words.add_argument("--ranks", type=int, nargs="+", default=[0, 17, 63], help="to measure, one after another")
    words.add_argument("--fp32", action="store_true", help="without the bf16 of ds_configs/zero3.json")
    words.add_argument("--table", action="store_true", help="only print the table of results")
    words.add_argument("--part", choices=PARTS, help="the part that this process does for one rank")
    words.add_argument("--folder", type=Path, help="where to write (default: TMPDIR)")
    asked = words.parse_args()
    if asked.part:
        print(json.dumps(PARTS[asked.part](asked.folder, asked.ranks[0], asked.of, asked.fp32)))
        return 0
    for rank in [] if asked.table else asked.ranks:
        line = measure(asked.folder, rank, asked.of, asked.fp32) | {"commit": code_version()}
        add_record(RESULTS, line)
    print(table(read_records(RESULTS)))
    return 0


def table(lines: list[dict[str, Any]]) -> str:
    shares = "a share | and the largest parameter"
    rows = [f"| rank | precision | built | with moments | saved | restored | {shares} | written | read |"]
    rows.append("|---" * 10 + "|")
    for line in lines:
        rose = [line[name] for name in ("built", "filled", "saved", "restored")]
        sizes = (*rose, line["share"], line["share"] + line["largest"], line["written"], line["read"])
        gb = " | ".join(f"{size / 1e9:.2f} GB" for size in sizes)
        rows.append(f"| {line['rank']} | {line['precision']} | {gb} |")
    return "\n".join(rows)


def measure(folder: Path | None, rank: int, ranks: int, fp32: bool) -> dict[str, Any]:
    """What building, saving and restoring take on a rank.

    Raises:
        RuntimeError: a tensor is not what it should be, or a process failed; its message is above.
    """
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=folder) as run:
        for part in PARTS:
            words = ["--part", part, "--ranks", str(rank), "--of", str(ranks), "--folder", run]
            command = [sys.executable, __file__, *words, *(["--fp32"] if fp32 else [])]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if told.returncode:
                raise RuntimeError(f"Rank {rank} failed: its message is above.")
            found.append(json.loads(told.stdout.splitlines()[-1]))
            print(found[-1], flush=True)
    if found[0].pop("digest") != found[1].pop("digest"):
        raise RuntimeError(f"Rank {rank} restored other tensors than it had saved.")
    return {"rank": rank, "ranks": ranks, "precision": "fp32" if fp32 else "bf16", **found[0], **found[1]}


class Meter:
    """The most that this process's memory has risen since the model was there as shapes, and the seconds it took."""

    def __init__(self) -> None:
        import_deepspeed()  # so that its memory does not count as the model's
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)  # glibc raises it, and then keeps freed memory
        self._before, self._since, self.told = memory("VmRSS"), time.monotonic(), dict[str, Any]()

    def tell(self, name: str) -> None:
        seconds = time.monotonic() - self._since
        self.told |= {name: memory("VmHWM") - self._before, f"{name}, s": round(seconds, 1)}
        self._since = time.monotonic()


def save(run: Path, rank: int, ranks: int, fp32: bool) -> dict[str, Any]:
    """Build, draw moments, save this rank's share, and compare ten tensors of it with those created whole."""
    attempt = FencingToken(run)  # claimed before being alone, since one rank claims it for all
    be_alone(rank, ranks)
    config, model, weights, ds_config = described(fp32, seed=0)
    facts = {"parameters": count_parameters(model), "largest": 4 * max(p.numel() for p in model.parameters())}
    meter = Meter()
    engine = engine_for(model, config, ds_config, weights)
    meter.tell("built")
    engine.prepare_state(STEP)
    engine.updates = STEP
    for name, parameter in engine.parameters():
        engine.fill(parameter, MOMENTS, partial(drawn, name))
    meter.tell("filled")
    before, saver = bytes_written(), Saver(engine, run, config.checkpoint, attempt)
    state = TrainState(STEP, STEP * 16, 0, "shards", updates=STEP)
    saver.start(state)
    assert saver._pending
    saver._pending.share.join()
    meter.tell("saved")
    written, entries = bytes_written() - before, saver._pending.share.entries
    publish(saver._pending.partial, engine, entries, state, rank, ranks)
    compare(engine, weights, fp32)
    own = sum(part.elements.numel() for _, parts in engine.own_parts() for part in parts.values())
    share = 4 * own + (0 if fp32 else 2 * own // 3)  # with the 16-bit weights that it computes with
    return facts | {"share": share, "written": written, "compared": len(NAMED), "digest": digest(engine)} | meter.told


def restored(run: Path, rank: int, ranks: int, fp32: bool) -> dict[str, Any]:
    """Build with other weights, and restore what this rank saved."""
    be_alone(rank, ranks)
    config, model, weights, ds_config = described(fp32, seed=1)
    meter, checkpoint = Meter(), run / CHECKPOINTS / step_name(STEP)
    engine = engine_for(model, config, ds_config, weights)
    before = bytes_read()
    find_damage(checkpoint)
    verified = bytes_read() - before
    meter.tell("verified")
    before = bytes_read()
    restore(engine, checkpoint)
    meter.tell("restored")
    read = bytes_read() - before - verified
    return meter.told | {"verified": verified, "read": read, "digest": digest(engine)}


PARTS = {"save": save, "restore": restored}


def be_alone(rank: int, ranks: int) -> None:
    """Be one of many ranks, without the others."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank % PER_NODE), "WORLD_SIZE": str(ranks)}
    torch_dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())


def described(fp32: bool, seed: int) -> tuple[Any, Any, InitialWeights, dict[str, Any]]:
    """giant.toml as shapes only, with random weights in place of those that it would download."""
    config = load_config(ROOT / "mvlm/configs/giant.toml", [f"run.seed={seed}"])
    settings, vocabulary = without_weights(config.blueprint.model, config.data)
    model, weights = build_recorded(dataclasses.replace(config.blueprint, model=settings), vocabulary)
    content = read_deepspeed_json(ROOT / "ds_configs/zero3.json") | ({"bf16": {"enabled": False}} if fp32 else {})
    side = RunSide(("json", "toml"), "", config.train, config.optim, dist.world(), (10, 2), count_parameters(model))
    return config, model, weights, resolve(content, side)


def drawn(name: str, key: str, start: int, stop: int) -> Tensor:
    seed = hashlib.sha256(f"{name} {key} {start}".encode()).digest()[:8]
    return torch.rand(stop - start, generator=torch.Generator().manual_seed(int.from_bytes(seed)))


def publish(partial_: Path, engine: Engine, own: list[Entry], state: TrainState, rank: int, ranks: int) -> None:
    """Publish the checkpoint as the first rank does; the other ranks' files have only headers and holes."""
    checkpoint = partial_.with_name(step_name(STEP))
    os.rename(partial_, checkpoint)
    (checkpoint / STATE).write_text(json.dumps(state.to_json()))
    found = hashlib.sha256((checkpoint / STATE).read_bytes()).hexdigest()
    entries = [*own, Entry(STATE, (checkpoint / STATE).stat().st_size, found)]
    for other in set(range(ranks)) - {rank}:
        for kind, keys in (("weights", ("weight",)), ("moments", MOMENTS)):
            path = checkpoint / f"{kind}-{other:05d}-of-{ranks:05d}.safetensors"
            entries.append(hollow(path, engine, keys, other, ranks))
    entries.sort(key=lambda entry: -entry.bytes)
    for number in range(rank, len(entries), ranks):  # those that this rank verifies
        with (checkpoint / entries[number].file).open("rb") as file:
            told = hashlib.file_digest(file, "sha256").hexdigest()
        entries[number] = dataclasses.replace(entries[number], sha256=told)
    (checkpoint / INDEX).write_text(json.dumps({"format": 3, "files": [asdict(entry) for entry in entries]}))


def hollow(path: Path, engine: Engine, keys: tuple[str, ...], rank: int, ranks: int) -> Entry:
    """A file of another rank, as mvlm/checkpoint/tensors.py writes it, but without the tensors' bytes."""
    header, places, end = dict[str, Any](), dict[str, str](), 0
    for name, parameter in engine.parameters():
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        count, size = math.prod(shape), -(-math.prod(shape) // ranks)
        if (length := min(size, count - size * rank)) <= 0:
            continue
        for key in keys:
            title = name if key == "weight" else f"{key}/{name}"
            start, end = end, end + 4 * length
            stored = shape if length == count else (length,)
            header[title] = {"dtype": "F32", "shape": stored, "data_offsets": [start, end]}
            if length < count:
                places[title] = json.dumps({"shape": shape, "start": size * rank})
    text = json.dumps({METADATA: places} | header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)
    return Entry(path.name, 8 + len(text) + end, "")


def compare(engine: Engine, weights: InitialWeights, fp32: bool) -> None:
    """Raises: RuntimeError: a part differs from the same part of the whole tensor."""
    own = dict(engine.own_parts())
    for name in NAMED:
        elements, start, *_ = own[name]["weight"]
        whole = weights.whole(name).flatten()[start : start + elements.numel()]
        if not torch.equal(elements, whole if fp32 else whole.bfloat16().float()):
            raise RuntimeError(f"{name} differs from the tensor created whole.")


def digest(engine: Engine) -> str:
    """A hash of all that this rank has."""
    found = hashlib.sha256()
    for name, parts in engine.own_parts():
        for key, part in parts.items():
            found.update(f"{name} {key} {part.start}".encode())
            found.update(part.elements.detach().numpy().data)
    return found.hexdigest()


def bytes_written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("wchar")))


if __name__ == "__main__":
    sys.exit(main())
