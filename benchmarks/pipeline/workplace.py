"""A folder in which the pipeline of every kind of step runs: what it reads, and hashes of what it makes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
FILE, LOGS = "steps.toml", Path("runs/faults/pipeline")
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


def prepare(folder: Path, kinds: Collection[str]) -> None:
    """What comes from outside: the pipeline's file with steps of some kinds, and coloured images with captions."""
    (folder / "in/images").mkdir(parents=True)
    head, *steps = (HERE / FILE).read_text().split("[[step]]\n")
    chosen = [step for step in steps if step.split('"')[1] in kinds]
    (folder / FILE).write_text("[[step]]\n".join([head, *chosen]))
    lines = []
    for number in range(IMAGES):
        colour = (37 * number % 256, 91 * number % 256, 53 * number % 256)
        Image.new("RGB", (32, 32), colour).save(folder / f"in/images/{number}.png")
        captions = [f"the colour {' '.join(str(value) for value in colour)} of number {number}"]
        lines.append(json.dumps({"id": str(number), "image": f"images/{number}.png", "captions": captions}))
    (folder / "in/captions.jsonl").write_text("\n".join(lines) + "\n")


def forget(folder: Path, step: str) -> None:
    """Undo a step, so that it is to be done again: what depends on it stays proven, by the same key."""
    shutil.rmtree(folder / LOGS / step, ignore_errors=True)
    if step == "preflight":
        return
    if step == "score":
        (folder / "corpus.score.step.json").unlink()
        for kind in ("scores", "embeddings"):
            for table in (folder / "corpus/eval").glob(f"*.{kind}.parquet"):
                table.unlink()
        return
    path = folder / OUTPUTS[step]
    Path(f"{path}.step.json").unlink()
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def hashes(folder: Path) -> dict[str, str]:
    """Of each output, of what has to be the same: shards and their tables, weights and moments of the last checkpoint,
    losses, results, vectors."""
    found = {}
    for path in map(Path, sorted({output for output in OUTPUTS.values() if output})):
        place = folder / path
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
