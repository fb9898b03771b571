"""A corpus with the author, licence and SVG of each picture, as icons have."""

import json

import torch
from PIL import Image, ImageDraw

from data_tools.__main__ import main as data_tools
from mvlm.search.build import build_index
from mvlm.search.find import ImageIndex
from mvlm.serve.answers import Answers

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64"><path d="M{0} 8h4v48h-4z"/><!-- < & "{0}" --></svg>'
COUNT = 12


def made(folder):
    """Shards of a few bars; the last has neither SVG nor licence, and one licence's URL must not become a link."""
    (folder / "source").mkdir(parents=True)
    lines = []
    for number in range(COUNT):
        at = 4 + 4 * number
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).rectangle((at, 8, at + 3, 55), fill="black")
        image.save(folder / f"source/{number:02}.png")
        line = {"id": f"bars:bar-{number}", "image": f"{number:02}.png", "captions": [f"bar {number}"]}
        about = {"name": f"bar-{number}", "set": "bars", "title": "Bars", "author": "Ann <b>"}
        url = "javascript:alert(1)" if number == 1 else "https://example.org/licence"
        if number < COUNT - 1:
            about |= {"licence": "MIT", "licence_url": url, "svg": SVG.format(at)}
        lines.append(json.dumps(line | about))
    (folder / "source/captions.jsonl").write_text("\n".join(lines))
    words = ["shard", "folder", str(folder / "source"), "--shard-mb", "0.001", "--workers", "1"]
    assert data_tools([*words, "--out", str(folder / "shards")]) == 0
    return folder / "shards"


def answers(loaded, folder):
    """The answers that the page gets about such a corpus."""
    out = folder / "index"
    build_index(loaded, [str(made(folder))], out, torch.device("cpu"))
    return Answers(loaded, ImageIndex(out, loaded), torch.device("cpu"))
