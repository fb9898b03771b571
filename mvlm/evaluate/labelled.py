"""VQA, NLVR2 and visual entailment: a class is chosen for each row, scored, and written as the servers expect it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.table import Table

from mvlm.data.samples.evaluation import LabelledEvalDataset
from mvlm.data.samples.labelled import class_names
from mvlm.evaluate import shares
from mvlm.evaluate.accuracy import consistency, mean_by, vqa_accuracy
from mvlm.evaluate.settings import Settings, reading_of
from mvlm.evaluate.tables import render
from mvlm.model.finetune import TaskModel
from mvlm.pretrained.runs import Loaded

TITLES = {"vqa": "Visual question answering", "nlvr2": "NLVR2", "entailment": "Visual entailment"}


class LabelledTask:
    """A fine-tuning task; the result also has the text of a file of predictions, under "predictions"."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, loaded: Loaded, settings: Settings, device: torch.device) -> dict[str, Any]:
        mixture = settings.mixture(self.name)
        dataset = LabelledEvalDataset(mixture, self.name, *reading_of(loaded), settings.limit)
        classes = class_names(self.name, loaded.tokenizer_folder)
        result, predicted = evaluate_labelled(loaded.model, dataset, classes, settings.search.batch, device)
        file = submission(self.name, dataset, predicted)
        return result | {"fingerprint": mixture.fingerprint, "predictions": file}

    def text(self, result: dict[str, Any]) -> str:
        table = Table("", "%", "rows", title=TITLES[self.name])
        answered = sum(found["rows"] for found in result["by_kind"].values())
        for name in ("accuracy", "consistency"):
            if name in result:
                table.add_row(name, f"{100 * result[name]:.2f}", str(answered))
        if "accuracy" not in result:
            table.add_row("accuracy", "unknown", str(result["rows"]))
        table.add_section()
        for kind, found in result["by_kind"].items():
            table.add_row(kind, f"{100 * found['score']:.2f}", str(found["rows"]))
        return render(table, result["protocol"])


def predict(model: TaskModel, dataset: LabelledEvalDataset, batch: int, device: torch.device) -> np.ndarray:
    """The class that the model finds likeliest for each row: int64 [rows], on every rank; all ranks must call."""
    chosen = []
    with shares.inference(model):
        for rows in shares.batches(len(dataset), batch):
            image_VBCHW, text_BL, valid_BL = (tensor.to(device) for tensor in dataset.samples(rows.tolist()))
            chosen.append(model.logits(image_VBCHW, text_BL, valid_BL).argmax(dim=-1))
    return shares.gather(chosen, len(dataset)).cpu().numpy()


def kind_of(task: str, row: dict[str, Any]) -> str:
    """The kind of a row, from its own columns: how its question begins, or its label."""
    return str(row["question_type" if task == "vqa" else "label"])


def score(task: str, predicted: Sequence[str], values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The task's official scores, 0 to 1, and the scores by kind of row; none if no row has an answer.

    Args:
        predicted: an answer or a label for each row.
        values: the rows' own columns. Questions published without answers, as VQA's test questions are, do not count.
    """
    if task == "vqa":
        answered = [(answer, row) for answer, row in zip(predicted, values, strict=True) if row["answers"]]
        scores = [vqa_accuracy(answer, row["answers"]) for answer, row in answered]
        kinds = [kind_of(task, row) for _, row in answered]
    else:
        kinds = [kind_of(task, row) for row in values]
        scores = [float(label == kind) for label, kind in zip(predicted, kinds, strict=True)]
    result: dict[str, Any] = {"accuracy": sum(scores) / len(scores)} if scores else {}
    if task == "nlvr2":
        result["consistency"] = consistency(predicted, kinds, [row["group"] for row in values])
    return result | {"by_kind": mean_by(kinds, scores)}


def evaluate_labelled(
    model: TaskModel,
    dataset: LabelledEvalDataset,
    classes: Sequence[str],
    batch: int,
    device: torch.device,
) -> tuple[dict[str, Any], list[str]]:
    """Measure; all ranks must call.

    Args:
        classes: the names of the model's classes.

    Returns:
        The result with its protocol, which can be written as JSON, and each row's prediction.
    """
    task = model.task.name
    predicted = [classes[number] for number in predict(model, dataset, batch, device)]
    result = {"task": task} | score(task, predicted, dataset.values)
    return result | {"rows": len(dataset), "protocol": _protocol(task, dataset, classes)}, predicted


def submission(task: str, dataset: LabelledEvalDataset, predicted: Sequence[str]) -> str:
    """The text of a file of predictions.

    VQA: a JSON list of question_id and answer, as for EvalAI. NLVR2: lines "identifier,True", as for its metrics.py.
    SNLI-VE has no server: JSON lines of pairID and prediction.
    """
    if task == "vqa":
        numbers = (row["question_id"] for row in dataset.values)
        answers = [{"question_id": n, "answer": answer} for n, answer in zip(numbers, predicted, strict=True)]
        return json.dumps(answers, ensure_ascii=False) + "\n"
    pairs = zip(dataset.keys, predicted, strict=True)
    if task == "nlvr2":
        return "".join(f"{key},{label}\n" for key, label in pairs)
    return "".join(json.dumps({"pairID": key, "prediction": label}) + "\n" for key, label in pairs)


def _protocol(task: str, dataset: LabelledEvalDataset, classes: Sequence[str]) -> str:
    size = dataset.image_size
    seen = f"Images resized to {size} x {size} without a crop, {dataset.reported_length}"
    if task == "vqa":
        chosen = f"{seen}; one of {len(classes)} answers is chosen."
        if not any(row["answers"] for row in dataset.values):
            return f"{chosen} The data has no answers: the evaluation server takes the file of --predictions."
        return (
            f"{chosen} Accuracy is VQA's: min(people who said so / 3, 1), "
            "averaged over leaving each of them out, after its normalisation of answers."
        )
    if task == "nlvr2":
        return f"{seen}. Consistency is the share of sentences that are judged right of all their pairs of images."
    return f"{seen}; one of {', '.join(classes)} is chosen."
