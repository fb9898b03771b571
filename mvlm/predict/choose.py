"""Answers to questions and verdicts on statements, by a model fine-tuned for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mvlm.data.samples.labelled import class_names
from mvlm.errors import UserError
from mvlm.evaluate import shares
from mvlm.evaluate.settings import open_pictures
from mvlm.model.finetune import TaskModel
from mvlm.predict.attention import attention_strips
from mvlm.predict.prediction import Answer, Asked, file_name, pair_up, printable
from mvlm.pretrained.runs import Loaded
from mvlm.runtime.wording import counted


@dataclass
class TaskPrediction:
    name: str  # what the user types
    tasks: tuple[str, ...]  # a run must be fine-tuned for one of these

    def run(self, loaded: Loaded[TaskModel], asked: Asked, device: torch.device) -> Answer:
        """Answer each question or statement; NLVR2's statements take two images each, the left one first."""
        task, model = loaded.blueprint.task, loaded.model
        pair = pair_up if task.images == 1 else _in_twos
        paths, sentences = pair(asked.images, asked.sentences)
        pictures = open_pictures(loaded, paths, sentences)
        classes = class_names(task.name, loaded.tokenizer_folder)
        entries, lines, drawings = [], [], {}
        for number, sentence in enumerate(sentences):
            rows = range(number * task.images, (number + 1) * task.images)
            image_V1CHW = torch.stack([pictures.images([row]) for row in rows]).to(device)
            text_1L, valid_1L = (tensor.to(device) for tensor in pictures.tokens.batch([sentence]))
            found = best_answers(model, task.name, classes, (image_V1CHW, text_1L, valid_1L), asked.top)[0]
            chosen = [{"answer": answer, "probability": share} for answer, share in found]
            images = [paths[row] for row in rows]
            entries.append({"images": [str(path) for path in images], "sentence": sentence, "answers": chosen})
            lines.append(f"{', '.join(map(printable, images))}: {printable(sentence)}")
            lines += [f"  {each['probability']:6.1%}  {printable(each['answer'])}" for each in chosen]
            if asked.draws:
                for row, path in zip(rows, images, strict=True):
                    drawings[file_name(row, path)] = attention_strips(model, pictures, row, sentence, device)
        return Answer(entries, "\n".join(lines), drawings)


def best_answers(
    model: TaskModel, task: str, classes: Sequence[str], inputs: tuple[Tensor, Tensor, Tensor], top: int
) -> list[list[tuple[str, float]]]:
    """For each of B questions or statements, the likeliest answers, best first, and their probabilities.

    Args:
        classes: the answers that the model chooses among.
        inputs: images VBCHW, V for each text, text_BL and valid_BL.
        top: the most answers to give.
    """
    with shares.inference(model):
        logits_BA = model.logits(*inputs).float()
    # Several answers may be right, independently; only one label is.
    share_BA = logits_BA.sigmoid() if task == "vqa" else logits_BA.softmax(-1)
    best = share_BA.topk(min(top, len(classes)))
    return [
        [(classes[place], share) for place, share in zip(places, found, strict=True)]
        for places, found in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _in_twos(images: Sequence[Path], sentences: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Two images for each sentence.

    Raises:
        UserError: there are more or fewer.
    """
    if len(images) != 2 * len(sentences):
        raise UserError(
            f"This model judges a sentence of two images, and there are {counted(len(images), 'image')} for "
            f"{counted(len(sentences), 'sentence')}: give two for each, the left one first."
        )
    return list(images), list(sentences)


ANSWER = TaskPrediction("answer", ("vqa",))
JUDGE = TaskPrediction("judge", ("entailment", "nlvr2"))
