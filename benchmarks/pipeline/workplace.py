"""A folder in which the pipeline of every kind of step runs: what it reads, and hashes of what it makes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from PIL import Image

from benchmarks.pipeline.store import BUCKET

HERE = Path(__file__).parent
FILE, LOGS = "steps.toml", Path("runs/faults/pipeline")
STORED = "store"  # folder of what an object store holds
CACHE = "tmp"  # of what is read from there
IMAGES = 100
OUTPUTS = {
    "command": "sorted.jsonl",
    "shard": "shards",
    "filter": "corpus",
    "tokenizer": "tokenizer.json",
    "preflight": "",
    "train": "run",
    "score": "corpus/eval",
    "finetune": "tuned",
    "evaluate": "retrieval.json",
    "index": "index",
    "export": "exported",
}
"""What each step makes; a step has the name of its kind."""


def prepare(folder: Path, kinds: Collection[str], store: Mapping[str, str] | None = None) -> None:
    """What comes from outside: the pipeline's file with steps of some kinds, and coloured images with captions.

    Args:
        store: variables by which all steps find an object store, where their shards and checkpoints are to lie.
    """
    (folder / "in/images").mkdir(parents=True)
    head, *steps = (HERE / FILE).read_text().split("[[step]]\n")
    chosen = [step for step in steps if step.split('"')[1] in kinds]
    text = "[[step]]\n".join([head, *chosen])
    (folder / FILE).write_text(_in_store(text, store | {"TMPDIR": str(folder / CACHE)}) if store else text)
    for name in (STORED, CACHE) if store else ():
        (folder / name).mkdir()
    lines = []
    for number in range(IMAGES):
        colour = (37 * number % 256, 91 * number % 256, 53 * number % 256)
        Image.new("RGB", (32, 32), colour).save(folder / f"in/images/{number}.png")
        captions = [f"the colour {' '.join(str(value) for value in colour)} of number {number}"]
        lines.append(json.dumps({"id": str(number), "image": f"images/{number}.png", "captions": captions}))
    (folder / "in/captions.jsonl").write_text("\n".join(lines) + "\n")


def _in_store(text: str, variables: Mapping[str, str]) -> str:
    for name in ("shards", "corpus"):
        text = re.sub(f'"{name}(["/])', rf'"s3://{BUCKET}/{name}\1', text)
    text = text.replace("checkpoint.every = 5\n", f'checkpoint = {{ every = 5, mirror = "s3://{BUCKET}/run" }}\n')
    given = "".join(f', {name} = "{value}"' for name, value in variables.items())
    return text.replace('"false" }', f'"false"{given} }}')


def forget(folder: Path, step: str) -> None:
    """Undo a step, so that it is to be done again: what depends on it stays proven, by the same key."""
    shutil.rmtree(folder / LOGS / step, ignore_errors=True)
    for cached in (folder / CACHE).glob("*"):
        shutil.rmtree(cached) if cached.is_dir() else cached.unlink()
    if step == "preflight":
        return
    if step == "score":
        _place(folder, "corpus.score.step.json").unlink()
        for kind in ("scores", "embeddings"):
            for table in _place(folder, OUTPUTS[step]).glob(f"*.{kind}.parquet"):
                table.unlink()
        return
    _place(folder, f"{OUTPUTS[step]}.step.json").unlink()
    path = _place(folder, OUTPUTS[step])
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder / STORED / OUTPUTS[step], ignore_errors=True)  # a mirror


def _place(folder: Path, path: str) -> Path:
    """Of an output: in the folder, or in what the store holds."""
    return folder / path if (folder / path).exists() else folder / STORED / path


def hashes(folder: Path) -> dict[str, str]:
    """Of each output, of what has to be the same: shards and their tables, weights and moments of the last checkpoint,
    losses, results, vectors."""
    found = {}
    for path in map(Path, sorted({output for output in OUTPUTS.values() if output})):
        place = _place(folder, str(path))
        if (place / "checkpoints/latest").is_file():
            latest = place / "checkpoints" / (place / "checkpoints/latest").read_text().strip()
            content = [_hash(file, folder) for file in sorted(latest.glob("*.safetensors"))] + [_losses(place)]
        elif place.is_dir():
            content = [f"{file.relative_to(place)} {_hash(file, folder)}" for file in sorted(_files(place))]
        else:
            content = [_hash(place, folder)] if place.is_file() else []
        found[str(path)] = hashlib.sha256("\n".join(content).encode()).hexdigest() if content else ""
    return found


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".step.json")]


def _hash(file: Path, folder: Path) -> str:
    """Of its content, in which the place of the folder does not count."""
    return hashlib.sha256(file.read_bytes().replace(str(folder).encode(), b".")).hexdigest()


def _losses(run: Path) -> str:
    """The last that was written of each step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return json.dumps(sorted({line["step"]: line["loss"] for line in lines if "loss" in line}.items()))
