"""The folder in which the pages' commands run: small corpora, shards and runs under the names that the pages use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.synth.miniature import write_miniature
from mvlm.api.results import RECIPE as RECIPE_OF_PYTHON
from mvlm.reproduce.miniature import RECIPE, RECIPE_OF_FIRST
from tests.cluster.miniatures import write_icons
from tests.conftest import ROOT
from tests.pages.shown import toml_block

SMALL = [word for word in RECIPE if not word.startswith("train.epochs")]
"""Overrides with which any recipe takes milliseconds per step."""
OWN_ENCODERS = {"small_domain.toml": "tf_efficientnet_lite0", "dictionary.toml": "patch_dictionary"}
"""TOMLs of docs/small.md and their image encoders. They freeze parts that only these encoders have, as the recipe of
`mvlm.train` does."""
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}


def reduced(words: list[str]) -> list[str]:
    """The words of `mvlm train`, changed for a tiny model and a few steps."""
    long = ("train.epochs=", "train.steps=", "train.global_batch=", "train.micro_batch=6", "eval.every=", "model.")
    own = [word for word in words if not word.startswith(long)]
    own_encoder = Path(words[0]).name in (*OWN_ENCODERS, RECIPE_OF_PYTHON)
    small = [word for word in SMALL if not word.startswith("model.vision")] if own_encoder else SMALL
    small = [*small, "model.vision_weights=random"]
    first = [] if any(word.startswith("checkpoint.init=") for word in words) else RECIPE_OF_FIRST
    return [*own, *small, *first, "train.epochs=0", "train.steps=4", "eval.every=2", "checkpoint.every=2"]


def make_world(folder: Path, scenes: Path, trained: Path) -> None:
    """Fill a folder that pages may change: only code is linked, everything else is copied."""
    folder.mkdir()
    for name in ("examples", "ds_configs", "mvlm", "cluster", "benchmarks", "data_tools"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("train", "eval", "test", "captions_3m", "coco_test"):
        shutil.copytree(scenes / ("train" if name == "train" else "eval"), folder / "shards" / name)
    for name in ("mine", "base", "scorer", "icons"):
        shutil.copytree(trained, folder / "runs" / name)
    for name in ("my_corpus", "my_pictures", "pictures", "photos"):
        _captioned(folder / name)
    _classes(folder / "pictures")
    for number, name in enumerate(("bus", "cat")):
        shutil.copy(folder / f"photos/images/{number}.jpg", folder / f"{name}.jpg")
    _published(folder)
    write_icons(folder)
    (folder / "icons/iconify-json-2.2.535.tgz").rename(folder / "iconify-json-2.2.535.tgz")
    lines = {"templates.txt": "{} top left\na {}\n", "sentences.txt": "red circle top left\n\nblue star\n"}
    lines |= {"removed.txt": "no-such-key\n"}
    lines |= {name: toml_block("docs/small.md", encoder) for name, encoder in OWN_ENCODERS.items()}
    for name, run in (("run.toml", "mine"), ("job_run.toml", "of_a_job")):
        lines[name] = f'[run]\ndir = "runs/{run}"\n[data]\ntrain = "shards/train"\neval = "shards/eval"\n'
    lines["job.toml"] = '[job]\nname = "base"\nrun = "job_run.toml"\ndeepspeed = "ds_configs/zero1.json"\nnodes = 2\n'
    for name, text in lines.items():
        (folder / name).write_text(text)


def _captioned(folder: Path) -> None:
    """Pictures, no two alike, with a `captions.jsonl` as docs/corpus.md describes it."""
    (folder / "images").mkdir(parents=True)
    dice, lines = np.random.default_rng(0), []
    for number in range(60):
        colour = list(COLOURS)[number % 3]
        pixels = dice.integers(0, 256, (6, 8, 3)) // 2 + np.array(COLOURS[colour]) // 2
        picture = Image.fromarray(pixels.astype(np.uint8)).resize((96, 72))
        picture.save(folder / f"images/{number}.jpg")
        captions = [f"a {colour} bus on a bridge", f"traffic number {number}"]
        line = {"id": f"{number:04}", "image": f"images/{number}.jpg", "captions": captions, "group": f"lane {number}"}
        lines.append(json.dumps(line))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def _classes(folder: Path) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("red_circle", "blue_star")):
            (folder / part / name).mkdir(parents=True)
            for more in range(3):
                shutil.copy(folder / f"images/{3 * number + more}.jpg", folder / part / name / f"{more}.jpg")
    Image.open(folder / "images/0.jpg").save(folder / "scene.png")


def _published(folder: Path) -> None:
    """The published data sets in miniature, in `data` and where docs/paper_data.md expects them."""
    write_miniature(folder / "data")
    (folder / "data/shards").symlink_to("../shards")
    for path in (folder / "data").glob("*/*.json*"):
        (folder / path.name).symlink_to(path.relative_to(folder))
    for name in ("coco", "vg", "nlvr2", "cc3m"):
        (folder / name).symlink_to(f"data/{name}")
    (folder / "sbu").symlink_to("data/sbu/images")
    (folder / "flickr30k-images").symlink_to("data/flickr30k/flickr30k-images")
    shutil.copytree(folder / "data/cc3m", folder / "tars", ignore=shutil.ignore_patterns("*.parquet", "*.json"))
