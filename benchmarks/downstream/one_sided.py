"""How far one side alone gets: by the worlds' construction, counted in their data, and if the other side is wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvlm.data.samples.evaluation import LabelledEvalDataset
from mvlm.data.samples.labelled import SENTENCES, class_names
from mvlm.data.shards.mixture import Mixture
from mvlm.evaluate.labelled import evaluate_labelled, score
from mvlm.evaluate.settings import reading_of
from mvlm.pretrained.runs import load_task_run

# By construction (data_tools/synth), each block has every answer equally often for each sentence and for each image.
# VQA's are the means over its five types, which have the same number of rows.
STATED = {
    "vqa": {"text_alone": (1 / 6 + 1 / 4 + 1 / 4 + 1 / 3 + 1 / 2) / 5, "image_alone": (4 / 3 + 1 / 2) / 5},
    "nlvr2": {"text_alone": 1 / 2, "image_alone": 1 / 2},
    "entailment": {"text_alone": 1 / 3, "image_alone": 1 / 3},
}

KIND = {"vqa": "question_type"}  # all that is known of a sentence that training did not have


def by_text_alone(task: str, world: Path) -> float:
    """Accuracy on `world`/eval of the most frequent answer in `world`/train: for the sentence, or else for its kind."""
    known: dict[str, Counter[str]] = defaultdict(Counter)
    for own in _rows(task, world / "train"):
        for name in _names(task, own):
            known[name][_answer(task, own)] += 1
    rows = _rows(task, world / "eval")
    guesses = [known[next(name for name in _names(task, own) if name in known)].most_common(1)[0][0] for own in rows]
    return score(task, guesses, rows)["accuracy"]


def with_one_side_exchanged(run: Path, task: str, data: Path, batch: int = 64) -> dict[str, float]:
    """Accuracy of a fine-tuned run when it is shown the images, or the sentences, of rows half the data away."""
    device = torch.device("cpu")
    loaded = load_task_run(run, task, device)
    classes = class_names(task, loaded.tokenizer_folder)
    found = {}
    for side in ("images", "texts"):
        dataset = Exchanged(Mixture([data], task=task), task, *reading_of(loaded))
        dataset.side = side
        found[f"wrong_{side}"] = evaluate_labelled(loaded.model, dataset, classes, batch, device)[0]["accuracy"]
    return found


class Exchanged(LabelledEvalDataset):
    """Rows in which one side, "images" or "texts", is taken from the row half the data further on."""

    side = "images"

    def samples(self, rows: Any) -> tuple[Tensor, Tensor, Tensor]:
        others = [(row + len(self) // 2) % len(self) for row in rows]
        image_VBCHW, text_BL, valid_BL = super().samples(rows)
        if self.side == "images":
            return super().samples(others)[0], text_BL, valid_BL
        return image_VBCHW, *self.texts(others)


def _rows(task: str, data: Path) -> list[dict[str, Any]]:
    mixture = Mixture([data], task=task)
    return [mixture.row(row).own for row in range(len(mixture))]


def _names(task: str, own: dict[str, Any]) -> list[str]:
    """The sentence, its kind if there is one, and "", which all rows have in common."""
    return [SENTENCES[task](own)[0], *([own[KIND[task]]] if task in KIND else []), ""]


def _answer(task: str, own: dict[str, Any]) -> str:
    return own["answers"][0] if task == "vqa" else str(own["label"])
