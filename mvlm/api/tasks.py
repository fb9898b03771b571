"""A fine-tuned model in Python: questions answered, statements judged."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from mvlm.api.images import AnyImage, listed, stacked
from mvlm.api.texts import Texts, listed_texts
from mvlm.checkpoint.description import CONFIG, described_in
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.config.load import load_stored_config
from mvlm.data.samples.labelled import class_names
from mvlm.data.samples.padding import BatchTokenizer
from mvlm.errors import UserError
from mvlm.evaluate.settings import reading_of
from mvlm.model.finetune import TaskModel
from mvlm.predict.choose import best_answers
from mvlm.pretrained.runs import Loaded, load_task_run
from mvlm.runtime import dist
from mvlm.runtime.arguments import path_of, whole


class FineTunedModel:
    """A model fine-tuned for questions ("vqa"), statements ("entailment") or statements about two images ("nlvr2"),
    made by `mvlm.load_finetuned`.

    Attributes:
        network: the `torch.nn.Module`, in evaluation mode.
        task: what it was fine-tuned for.
        answers: those that it chooses among.
        step: the number of updates it was fine-tuned for.
    """

    def __init__(self, loaded: Loaded[TaskModel]) -> None:
        task, (tokenizer, length, self._image_size) = loaded.blueprint.task, reading_of(loaded)
        self.network, self.task, self.step = loaded.model.eval(), task.name, loaded.step
        self.answers = class_names(self.task, loaded.tokenizer_folder)
        self._tokens, self._per_text = BatchTokenizer(tokenizer, length), task.images

    def answer(
        self, images: AnyImage | Iterable[AnyImage], texts: Texts, top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """For each question or statement, the likeliest answers, best first, with their probabilities.

        Args:
            images: one for each text; for "nlvr2", two in a row, the left one first.
            texts: questions or statements, without the model's special tokens.
            top: how many answers to give for each.

        Raises:
            UserError: there are more or fewer images than the texts need, something is not an image or not a text, or
                `top` is below 1; the message names it.
        """
        shown, asked, top = listed(images), listed_texts(texts, self._tokens), whole("top", top)
        if not asked or len(shown) != self._per_text * len(asked):
            raise UserError(
                f"The number of images, {len(shown)}, does not match the number of texts, {len(asked)}: "
                f"give {self._per_text} for each text, in order."
            )
        device = next(self.network.parameters()).device
        found: list[list[tuple[str, float]]] = []
        for first in range(0, len(asked), BATCH):
            some = asked[first : first + BATCH]
            mine = shown[first * self._per_text : (first + len(some)) * self._per_text]
            views = [stacked(mine[view :: self._per_text], self._image_size) for view in range(self._per_text)]
            text_BL, valid_BL = self._tokens.batch(some)
            inputs = (torch.stack(views).to(device), text_BL.to(device), valid_BL.to(device))
            found += best_answers(self.network, self.task, self.answers, inputs, top)
        return found


BATCH = 64
"""Questions per forward pass."""


def load_finetuned(run: str | os.PathLike[str], device: torch.device | str | None = None) -> FineTunedModel:
    """A fine-tuned model, ready to use.

    Args:
        run: a run folder (its newest checkpoint), or one of its checkpoints.
        device: where it computes; None = this machine's accelerator, or the CPU.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it was not fine-tuned for questions or statements.
    """
    task = load_stored_config(described_in(find_checkpoint(path_of("run", run))) / CONFIG).task
    if not task.is_labelled:
        raise UserError(f"{run} is a run of {task.name}, which answers nothing: load it with mvlm.load.")
    return FineTunedModel(load_task_run(Path(run), task.name, dist.device_named(device)))
