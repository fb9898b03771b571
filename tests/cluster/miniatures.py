"""The shipped pipelines at miniature size: generated inputs, and the changes to their files."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cluster.pipeline.file import BY_RUN, TRAINING, load_pipeline
from data_tools.synth.miniature import write_miniature
from mvlm.reproduce.miniature import RECIPE, RECIPE_OF_FIRST
from tests.conftest import ROOT
from tests.tars import add_file

SETS, THINGS, OF_A_SET = 55, 60, 3
"""Of icons. A designer or a concept with more than a fiftieth of all rows would not be held out."""
STYLES = ("left", "right", "fill", "outline")
LINKS, MISSING, REMOVED = 40, 2, 1
"""Of web: links, of which some lead nowhere, and one whose image is taken down."""
PORT = 8123


def write_icons(data: Path) -> None:
    """A package as npm fetches it: sets of several designers, with things in two directions and two styles."""
    archive = data / "icons/iconify-json-2.2.535.tgz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        for number in range(SETS):
            things = [(number * OF_A_SET + more) % THINGS for more in range(OF_A_SET)]
            icons = {
                f"thing{thing}-{style}": _icon(number, thing, STYLES.index(style))
                for thing in things
                for style in STYLES
            }
            licence = {"title": "MIT", "spdx": "MIT", "url": "https://example.org/licence"}
            info = {"name": f"Set {number}", "author": {"name": f"Author {number}"}, "license": licence}
            content = {"prefix": f"set{number}", "info": info, "icons": icons, "width": 16, "height": 16}
            add_file(tar, f"package/json/set{number}.json", json.dumps(content).encode())


def _icon(number: int, thing: int, style: int) -> dict[str, str]:
    """A drawing that no other icon has."""
    return {"body": f'<path d="M{number % 15} {thing % 15}h{style + 1}v1zM{number // 15} {thing // 15}h1v1z"/>'}


def write_web(data: Path) -> None:
    """Images, a table of links to them on this machine, and a list of one to take down."""
    (data / "links").mkdir(parents=True)
    (data / "images").mkdir()
    for number in range(LINKS):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize((224, 224)).save(data / f"images/{number:03d}.jpg")
    write_links(data, PORT)


def write_links(data: Path, port: int) -> None:
    """The table and the list, for a server on a port."""
    kinds = ["404" if number < MISSING else "ok" for number in range(LINKS)]
    urls = [f"http://127.0.0.1:{port}/{kind}/{number}.jpg" for number, kind in enumerate(kinds)]
    captions = [f"a drawing of noise number {number}" for number in range(LINKS)]
    pq.write_table(pa.table({"URL": urls, "TEXT": captions}), data / "links/part-0.parquet")
    (data / "removed.txt").write_text("\n".join(urls[MISSING : MISSING + REMOVED]) + "\n")


INPUTS = {"4m": write_miniature, "icons": write_icons, "web": write_web}
CHANGES: Mapping[str, Mapping[str, str]] = {
    "4m": {},
    "icons": {},
    "web": {
        '"urls", ': '"urls", "--allow-loopback", ',
        "train=0.9999,eval=0.0001": "train=0.7,eval=0.3",
        '"10000"': '"4"',
        # a model that has learnt nothing finds nothing good
        "itc_similarity > 0.25 and duplicate_similarity < 0.95": "itc_similarity > -2 and duplicate_similarity < 2",
    },
}
"""Replacements in the text of their files."""


def shipped(name: str, folder: Path) -> Path:
    """A shipped pipeline with all its paths below a folder, which gets its inputs too."""
    text = (ROOT / f"cluster/pipelines/{name}.toml").read_text()
    for old, new in CHANGES[name].items():
        assert old in text, old
        text = text.replace(old, new)
    text = re.sub(r'"(shards|runs|exported)/', rf'"{folder}/\1/', text).replace('"/data/', f'"{folder}/data/')
    path = folder / f"{name}.toml"
    path.write_text(text.replace("[pipeline]", f'[pipeline]\nlogs = "{folder}/logs"'))
    INPUTS[name](folder / "data")
    return path


def overrides(path: Path) -> list[str]:
    """For nodes of two CPUs without GPUs: two ranks train on two nodes, tasks share the work in two parts, models are
    tiny."""
    words = ["pipeline.environment.OMP_NUM_THREADS=1"]
    for name, step in load_pipeline(path).steps.items():
        own = {"gpus": 0, "cpus": 1, "nodes": min(step.nodes, 2), "parts": min(step.parts, 2), "time": '""'}
        words += [f"{name}.{key}={value}" for key, value in own.items() if getattr(step, key) != value]
        if step.kind in BY_RUN:
            first = "init" not in step.settings.get("checkpoint", {})
            recipe = [*RECIPE, *(RECIPE_OF_FIRST if first and step.kind in TRAINING else ())]
            words += [f"{name}.deepspeed=ds_configs/cpu.json"]
            words += [f"{name}.settings.{word}" for word in (*recipe, "train.epochs=1", "train.global_batch=16")]
    return words
