"""VQA v2: the question and annotation files as published, with COCO's images; one row per question.

The questions of test-dev and test-std are published without annotations: their rows have no answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mvlm.errors import UserError

from .annotated import Annotated, Annotation, At, Unfit, check_file, text, whole
from .json_stream import json_items

SUBTYPES = ("train2014", "val2014", "test2015")
"""COCO's image ids are unique across these, so that looking in all of them finds no wrong image."""


def vqa(paths: list[Path], images: list[str], annotations: Sequence[str] = ()) -> Annotated:
    """v2_OpenEnded_*_questions.json files; --annotations: the v2_*_annotations.json of each, or left out (test-dev,
    test-std: rows to predict answers of); --images: COCO's image folder or that of train2014/ and so on; key: the
    question's id"""
    if annotations and len(paths) != len(annotations):
        raise UserError(
            f"{len(paths)} files of questions need as many --annotations, not {len(annotations)}: pair them."
        )
    for annotation in annotations:
        check_file(Path(annotation))
    if not annotations:
        return Annotated(paths, images, _questions, _test_entry, "vqa")
    answers_of = dict(zip(map(str, paths), map(Path, annotations), strict=True))

    def items(file: BinaryIO) -> Iterator[Any]:
        yield from _joined(file, answers_of[file.name])

    return Annotated(paths, images, items, _entry, "vqa")


def _questions(file: BinaryIO) -> Iterator[Any]:
    return json_items(file, "questions.item")


def _joined(file: BinaryIO, path: Path) -> Iterator[tuple[Any, Any]]:
    """Each question with its annotation, or None; only annotations that run ahead of the questions are held."""
    waiting: dict[object, Any] = {}
    with path.open("rb") as other:
        annotations = json_items(other, "annotations.item")
        for question in _questions(file):
            wanted = _id(question)
            while wanted is not None and wanted not in waiting:
                annotation = next(annotations, None)
                if annotation is None:
                    break
                waiting[_id(annotation)] = annotation
            yield question, waiting.pop(wanted, None)


def _id(entry: Any) -> object:
    """The question's id that a question or an annotation states; None if an entry of another shape has none."""
    found = entry.get("question_id") if isinstance(entry, dict) else None
    return None if isinstance(found, list | dict) else found


def _entry(item: tuple[Any, Any], at: At) -> Annotation:
    question, annotation = item
    if annotation is None:
        raise Unfit("question without annotation")
    if question["image_id"] != annotation["image_id"]:
        raise Unfit("question and annotation name different images")
    answers = [text(answer["answer"]) for answer in annotation["answers"]]
    return _row(question, answers, text(annotation["question_type"]))


def _test_entry(question: Any, at: At) -> Annotation:
    return _row(question, [], "")


def _row(question: Any, answers: list[str], question_type: str) -> Annotation:
    image_id, question_id = whole(question["image_id"]), whole(question["question_id"])
    columns = {
        "question_id": question_id,
        "question": text(question["question"]),
        "answers": answers,
        "question_type": question_type,
    }
    names = [f"COCO_{subtype}_{image_id:012d}.jpg" for subtype in SUBTYPES]
    places = names + [f"{subtype}/{name}" for subtype, name in zip(SUBTYPES, names, strict=True)]
    return Annotation(str(question_id), places, fields={"image_id": image_id}, columns=columns)
