"""Rows of the fine-tuning tasks as samples for the same loader: images, sentences and a label.

Nothing here may import torch when loaded: loader processes must stay small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mvlm.config.schema import Data
from mvlm.data.samples.answers import load_answers, soft_target
from mvlm.data.samples.captions import CaptionTokenizer
from mvlm.data.samples.dataset import Sample, ShardDataset, Visit
from mvlm.data.samples.pairs import SIDES
from mvlm.data.shards.columns import Row
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.schema import LABELS

SENTENCES: dict[str, Callable[[dict[str, Any]], tuple[str, ...]]] = {
    "vqa": lambda own: (own["question"],),
    "nlvr2": lambda own: (own["sentence"],),
    "entailment": lambda own: (own["sentence"],),
    "foils": lambda own: (own["caption"], own["foil"]),
}
"""By task: the sentences of a row."""

ANSWERS = "answers.json"
"""Beside the tokenizer in the run folder: both say what numbers mean, and travel with the run."""


@dataclass(frozen=True, kw_only=True)
class Labelled(Sample):
    """One row; the fields of `LabelledBatch` without B."""

    texts_TL: tuple[np.ndarray, ...]  # int64 each
    label: np.ndarray  # int64, or float32 [A]


def class_names(task: str, tokenizer_folder: Path) -> tuple[str, ...]:
    """The classes a task chooses among, none if it is not such a task; those of "vqa" are read from the run folder.

    Raises:
        UserError: they cannot be read.
    """
    if task == "vqa":
        return load_answers(tokenizer_folder / ANSWERS)
    return {"nlvr2": ("False", "True"), "entailment": LABELS}.get(task, ())


class LabelledDataset(ShardDataset[Labelled]):
    """Samples of one task.

    The label is the class: for "nlvr2" whether the sentence is true, for "entailment" its place in `LABELS`, for
    "foils" the true sentence's place, which is 0. For "vqa" it is how right each of `answers` is.

    Args:
        mixture: rows of `task`.
        tokenizer: a fast transformers tokenizer.
        answers: the classes of "vqa".
    """

    def __init__(
        self,
        mixture: Mixture,
        task: str,
        tokenizer: Any,
        data: Data,
        image_size: int,
        seed: int,
        answers: Sequence[str] = (),
    ):
        super().__init__(mixture, data, image_size, seed)
        self.task = task
        self.captions = CaptionTokenizer(tokenizer, data.text_length)
        self._answers = {answer: place for place, answer in enumerate(answers)}
        self.image_shape = (2 if task == "nlvr2" else 1, 3, image_size, image_size)

    def sentences(self, content: Row) -> Sequence[str]:
        return SENTENCES[self.task](content.own)

    def describe(self, content: Row, visit: Visit, out_VCHW: np.ndarray) -> Labelled:
        sentences = self.sentences(content)
        said = (*sentences, *content.own.get("answers", ()))
        return Labelled(
            images=out_VCHW,
            flip=self.data.flip and not any(map(SIDES.search, said)),
            texts_TL=tuple(map(self.captions.encode, sentences)),
            label=self._label(content.own),
            position=visit.position,
            row=visit.row,
        )

    def longest(self, position: int) -> Labelled:
        label = np.zeros(len(self._answers), dtype=np.float32) if self.task == "vqa" else np.array(0)
        texts_TL = (self.captions.longest(),) * (2 if self.task == "foils" else 1)
        return Labelled(images=np.empty(0), flip=False, texts_TL=texts_TL, label=label, position=position, row=position)

    def _label(self, own: dict[str, Any]) -> np.ndarray:
        match self.task:
            case "vqa":
                return self._how_right(own["answers"])
            case "nlvr2":
                return np.array(int(own["label"]))
            case "entailment":
                return np.array(LABELS.index(own["label"]))
            case _:
                return np.array(0)

    def _how_right(self, given: Sequence[str]) -> np.ndarray:
        right_A = np.zeros(len(self._answers), dtype=np.float32)
        for number, share in soft_target(given, self._answers).items():
            right_A[number] = share
        return right_A
