"""Visual Genome's questions: `question_answers.json`; one row per question, to train on beside VQA v2's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mvlm.data.samples.answers import frequent_answers, normalize_answer
from mvlm.errors import UserError

from .annotated import Annotated, Annotation, At, check_file, text, whole
from .json_stream import json_items
from .vg import places

MINIMUM = 9
"""Fewest questions of VQA that have an answer as their majority answer for it to count: `task.answer_minimum`."""


def vg_qa(paths: list[Path], images: list[str], annotations: list[str]) -> Annotated:
    """question_answers.json; --annotations: VQA's v2_*_annotations.json, whose frequent answers a question must have to
    be kept; --images: the folder that holds VG_100K and VG_100K_2, or these two; key: the question's id

    Source of the choice: Anderson et al., "Bottom-Up and Top-Down Attention for Image Captioning and Visual Question
    Answering" (arXiv 1707.07998), which keeps 485 k questions this way.
    """
    for annotation in annotations:
        check_file(Path(annotation))
    known = frozenset(frequent_answers(_answers(annotations), MINIMUM))

    def entry(item: Any, at: At) -> Annotation | None:
        image_id, question_id, answer = whole(item["image_id"]), whole(item["qa_id"]), text(item["answer"])
        if normalize_answer(answer) not in known:
            return None
        columns = {
            "question_id": question_id,
            "question": text(item["question"]),
            "answers": [answer],
            "question_type": "",
        }
        return Annotation(str(question_id), places(image_id), fields={"image_id": image_id}, columns=columns)

    return Annotated(paths, images, _items, entry, "vg_qa")


def _items(file: BinaryIO) -> Iterator[Any]:
    return json_items(file, "item.qas.item")


def _answers(annotations: list[str]) -> Iterator[list[str]]:
    for path in annotations:
        with Path(path).open("rb") as file:
            for annotation in json_items(file, "annotations.item"):
                try:
                    yield [text(answer["answer"]) for answer in annotation["answers"]]
                except (LookupError, TypeError):
                    raise UserError(
                        f"{path} has no VQA annotations: give --annotations v2_*_annotations.json."
                    ) from None
