"""The folder in which the pipeline with every kind of step runs: its input, and hashes of its output."""

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
STORED = "store"  # folder with an object store's content
CACHE = "tmp"  # folder with what is read from there
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
"""Each step's output; a step has the name of its kind."""


def prepare(folder: Path, kinds: Collection[str], store: Mapping[str, str] | None = None) -> None:
    """Write the input: the pipeline's file with steps of some kinds, and coloured images with captions.

    Args:
        store: environment variables by which all steps find an object store, for their shards and checkpoints.
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
    """Undo a step, so that it has to run again; steps that depend on it stay done, since their keys stay the same."""
    shutil.rmtree(folder / LOGS / step, ignore_errors=True)
    for cached in (folder / CACHE).glob("*"):
        _delete(cached)
    if step == "preflight":
        return
    if step == "score":
        _place(folder, "corpus.score.step.json").unlink()
        for kind in ("scores", "embeddings"):
            for table in _place(folder, OUTPUTS[step]).glob(f"*.{kind}.parquet"):
                table.unlink()
        return
    _place(folder, f"{OUTPUTS[step]}.step.json").unlink()
    _delete(_place(folder, OUTPUTS[step]))
    shutil.rmtree(folder / STORED / OUTPUTS[step], ignore_errors=True)  # its mirror


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _place(folder: Path, path: str) -> Path:
    """The path of an output: in the folder, or in the store's content."""
    return folder / path if (folder / path).exists() else folder / STORED / path


def hashes(folder: Path) -> dict[str, str]:
    """A hash of each output's parts that have to be the same: shards and their tables, weights and moments of the last
    checkpoint, losses, results, vectors."""
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
    """A hash of its content, in which the folder's path is replaced."""
    return hashlib.sha256(file.read_bytes().replace(str(folder).encode(), b".")).hexdigest()


def _losses(run: Path) -> str:
    """The last loss that was written for each step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return json.dumps(sorted({line["step"]: line["loss"] for line in lines if "loss" in line}.items()))
