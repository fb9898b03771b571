"""Rows of a fine-tuning task as training samples: an image or a pair, a text, and how right each class is.

Nothing here may import torch when loaded: loader processes are to stay small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvlm.config import Config
from mvlm.data.answers import load_answers, soft_target
from mvlm.data.captions import CaptionTokenizer
from mvlm.data.columns import Row, TaskRow
from mvlm.data.index import Mixture
from mvlm.data.pairs import SIDES
from mvlm.data.rows import Rows, Sample
from mvlm.data.schema import LABELS
from mvlm.masking import Purpose

if TYPE_CHECKING:
    from torch import Tensor

    from mvlm.batch import LabelledBatch

ANSWERS = "answers.json"
"""Beside the tokenizer in the run folder: both say what numbers mean, and go wherever the run goes."""


@dataclass(frozen=True, kw_only=True)
class Labelled(Sample):
    text_L: np.ndarray  # int64
    target: dict[int, float]  # class -> how right it is


def class_names(task: str, tokenizer_folder: Path) -> tuple[str, ...]:
    """What a task chooses among, nothing where it is no such task; the answers to questions stand in the run folder.

    Raises:
        UserError: they cannot be read.
    """
    if task == "vqa":
        return load_answers(tokenizer_folder / ANSWERS)
    return {"nlvr2": ("False", "True"), "entailment": LABELS}.get(task, ())


def target(task: str, values: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[int, float]:
    """How right each class is of a row with these values; 0 where it is left out."""
    if task == "vqa":
        return soft_target(values["answers"], numbers)
    return {numbers[str(values["label"])]: 1.0}


class LabelledDataset(Rows[Labelled]):
    """Training samples of "vqa", "nlvr2" or "entailment".

    Args:
        mixture: the task's shards.
        classes: as `class_names` gives them.
    """

    def __init__(self, mixture: Mixture, tokenizer: Any, config: Config, classes: Sequence[str]):
        super().__init__(mixture, config)
        self.captions = CaptionTokenizer(tokenizer, config.data.text_length)
        self.classes = tuple(classes)
        size = config.model.image_size
        self.image_shape = (config.task.images, 3, size, size)
        self._numbers = {name: number for number, name in enumerate(classes)}

    def prepare(self, content: Row, position: int, row: int, occurrence: int) -> Labelled:
        assert isinstance(content, TaskRow)
        said = (*content.captions, *content.values.get("answers", ()))
        flip = self.config.data.flip and not any(SIDES.search(text) for text in said)

        def view(purpose: Purpose, data: memoryview, crc32: int) -> np.ndarray:
            return self.views(data, crc32, flip, self.rng(purpose, position, occurrence, row))[0]

        images = [view(Purpose.VIEW, content.image, content.crc32)]
        if content.image2 is not None:
            images.append(view(Purpose.RIGHT_VIEW, content.image2, content.crc32_2))
        return Labelled(
            images=tuple(images),
            text_L=self.captions.encode(content.captions[0]),
            target=target(self.config.task.name, content.values, self._numbers),
            position=position,
            row=row,
        )

    def collate(self, samples: Sequence[Labelled], images_UBCHW: Tensor) -> LabelledBatch:
        from mvlm.data.collate import collate_labelled  # it needs torch

        return collate_labelled(samples, images_UBCHW, len(self.classes), self.captions.pad_id, self.captions.length)
