"""The tables of this folder's README from results/finetune.json: python -m benchmarks.downstream.table"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.downstream.finetune import PARTS, RESULTS
from benchmarks.step.table import put

README = Path(__file__).parent / "README.md"
TITLES = {"vqa": "questions", "nlvr2": "statements about two scenes", "entailment": "hypotheses"}
SEEN = {"right": "the right one", "none": "none", "wrong": "another's"}


def main() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    README.write_text(put(README.read_text(encoding="utf-8"), "finetune", tables(found)), encoding="utf-8")


def tables(found: dict[str, Any]) -> str:
    """What pretraining reached, and what fine-tuning from there reached."""
    heads = [f"after {found['pretraining']:,} updates on captions, %", *PARTS]
    tuned = ["fine-tuned, %", *PARTS, "most of one side", "shown another's image", "another's sentence"]
    return "\n\n".join([_table(heads, _pretrained(found["pretrained"])), _table(tuned, _tuned(found))])


def _pretrained(found: dict[str, Any]) -> Iterator[list[str]]:
    retrieval, reconstruction = (
        [found[f"{name}_{part}"] for part in PARTS] for name in ("retrieval", "reconstruction")
    )
    for way, title in (("image_to_text", "image to text"), ("text_to_image", "text to image")):
        yield [f"R@1, {title}, by ITC", *(percent(part[way]["itc"]["r1"]) for part in retrieval)]
        yield ["the same, re-ranked by ITM", *(percent(part[way]["reranked"]["r1"]) for part in retrieval)]
    for seen, title in SEEN.items():
        yield [f"masked words; image: {title}", *(percent(part["word_accuracy"][seen]) for part in reconstruction)]
    pixels = {seen: f"masked pixels' L1; caption: {title}" for seen, title in SEEN.items()}
    for seen, title in (pixels | {"constant": "the same of the constant picture"}).items():
        yield [title, *(f"{part['pixel_l1'][seen]['mean']:.2f}" for part in reconstruction)]
    for head, title in (("itc", "foils by ITC"), ("itm", "foils by ITM")):
        yield [f"{title} (chance 50)", percent(found["foils_eval"]["accuracy"][head]["all"]), ""]


def _tuned(found: dict[str, Any]) -> Iterator[list[str]]:
    for task, title in TITLES.items():
        chance, reached = found["tasks"][task]["chance"], found["tasks"][task]["pretrained"]
        parts = [reached[f"{task}_{part}"] for part in PARTS]
        yield [
            f"{title}, {found['steps'][task]:,} updates",
            *(percent(part["accuracy"]) for part in parts),
            f"{100 * max(chance['text_alone'], chance['image_alone']):.1f}",
            percent(reached["exchanged"]["wrong_images"]),
            percent(reached["exchanged"]["wrong_texts"]),
        ]
        if task == "nlvr2":
            yield ["all pairs of a sentence (consistency)", *(percent(p["consistency"]) for p in parts), "", "", ""]
        kinds = [reached[f"statements_{part}"] for part in PARTS] if task == "nlvr2" else [p["by_kind"] for p in parts]
        for kind in kinds[0]:
            yield [f"of these: {kind}", *(percent(part[kind]["score"]) for part in kinds), "", "", ""]


def percent(spread: dict[str, float]) -> str:
    """Mean, and the least and greatest seed if they differ."""
    mean, least, greatest = (f"{100 * spread[name]:.1f}" for name in ("mean", "min", "max"))
    return mean if least == greatest else f"{mean} ({least} to {greatest})"


def _table(heads: list[str], rows: Iterator[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


if __name__ == "__main__":
    main()
