"""Zero-shot classification: the class whose sentences are nearest to the image (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from mvlm.data.samples.pictures import ClassFolder, Pictures
from mvlm.errors import UserError
from mvlm.evaluate import intervals, ranking, shares
from mvlm.evaluate.retrieval import SearchSettings, image_features, rank_items, text_features
from mvlm.evaluate.settings import Settings, open_pictures
from mvlm.evaluate.tables import percent, render
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.runs import Loaded

TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "this is a {}", "there is a {}")
"""Lower case and without a full stop, as captions mostly are."""


SHARES = ("top1", "top5", "mean_per_class")
"""Shares of the pictures that are classified correctly."""


def sentences_of(folder: ClassFolder, templates: Sequence[str]) -> list[str]:
    """The sentences of the first class, then those of the second, and so on."""
    return [template.replace("{}", name) for name in folder.names for template in templates]


def read_templates(path: str) -> list[str]:
    """Read one template per line.

    Raises:
        UserError: the file cannot be read, is empty, or a line does not have exactly one {}.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give --templates a text file.") from None
    templates = [line for line in lines if line]
    for line in templates:
        if line.count("{}") != 1:
            raise UserError(f"{path}: the line {line!r} must have one {{}}, where the class's name goes.")
    if not templates:
        raise UserError(f"{path} has no template: write one per line, such as: a photo of a {{}}")
    return templates


def evaluate_classification(
    model: MaskVLM, pictures: Pictures, label_N: np.ndarray, classes: int, search: SearchSettings, device: torch.device
) -> dict[str, Any]:
    """Classify each picture by ITC.

    Args:
        pictures: their captions are the sentences of class 0, then those of class 1, and so on, equally many of each.
        label_N: the class of each picture.

    Returns:
        `top1`, `top5` and `mean_per_class`, the mean over classes of their top1, in shares; `interval` of each;
        `chance` of top1 and top5; `images`, `classes`; `protocol`.
    """
    sizes = search.sizes(model, pictures)
    with shares.inference(model):
        image_NE = image_features(model, pictures, sizes.batch, device)
        class_CE = class_features(text_features(model, pictures, sizes.batch, device), classes)
        number_C = np.arange(classes)
        right = ranking.RelevantItems(
            ranking.Lists.of(np.arange(len(label_N)), label_N, len(label_N)),
            ranking.Lists.of(number_C, number_C, classes),
        )
        rank_N = rank_items(image_NE, class_CE, right, 1, sizes).itc_A
    return scores(rank_N, label_N, classes) | {
        "protocol": (
            f"{len(label_N)} pictures of {classes} classes, zero-shot: a class is the mean of the features of its "
            f"{len(pictures.captions) // classes} sentences, the nearest by cosine similarity is chosen, equal ones in "
            f"the order of their names. {intervals.explain('the pictures')}"
        )
    }


def class_features(text_ME: Tensor, classes: int) -> Tensor:
    """The mean of each class's sentences, of unit length -> CE."""
    return F.normalize(text_ME.unflatten(0, (classes, -1)).mean(dim=1), dim=-1)


def scores(rank_N: np.ndarray, label_N: np.ndarray, classes: int) -> dict[str, Any]:
    """The result of `evaluate_classification`, without its protocol, from the rank of each picture's class."""

    order_N = np.argsort(label_N)
    first_C = np.unique(label_N[order_N], return_index=True)[1]  # where each class that has pictures begins

    def shares_of(weight_RN: np.ndarray) -> dict[str, np.ndarray]:
        size_RC = np.add.reduceat(weight_RN[:, order_N], first_C, axis=1)
        right_RC = np.add.reduceat((weight_RN * (rank_N == 0))[:, order_N], first_C, axis=1)
        passed_RB = ranking.passed(rank_N, weight_RN)
        return {
            "top1": ranking.recall(passed_RB, 1),
            "top5": ranking.recall(passed_RB, 5),
            "mean_per_class": (right_RC / size_RC.clip(min=1)).sum(axis=1) / (size_RC > 0).sum(axis=1),
        }

    return {
        **intervals.point(len(label_N), shares_of),
        "interval": intervals.bootstrap(len(label_N), shares_of),
        "chance": {"top1": 1 / classes, "top5": min(5, classes) / classes, "mean_per_class": 1 / classes},
        "images": len(label_N),
        "classes": classes,
    }


def table(result: dict[str, Any], title: str) -> str:
    """The shares of `scores` for a terminal."""
    rows = Table("", "%  (95 % interval)", "chance", title=title)
    for key, name in (("top1", "top 1"), ("top5", "top 5"), ("mean_per_class", "mean of the classes' top 1")):
        rows.add_row(name, percent(result[key], result["interval"][key]), percent(result["chance"][key]))
    return render(rows, result["protocol"])


def one_folder(settings: Settings) -> ClassFolder:
    """The folder of --data.

    Raises:
        UserError: there are several, or it is not a folder of classes.
    """
    if len(settings.data) != 1:
        raise UserError(f"--data names {len(settings.data)} folders: give one that has a folder for each class.")
    return ClassFolder(settings.data[0], settings.limit)


class ClassificationTask:
    name = "classification"

    def run(self, loaded: Loaded, settings: Settings, device: torch.device) -> dict[str, Any]:
        folder = one_folder(settings)
        templates = read_templates(settings.templates) if settings.templates else list(TEMPLATES)
        pictures = open_pictures(loaded, folder.paths, sentences_of(folder, templates))
        classes = len(folder.names)
        result = evaluate_classification(loaded.model, pictures, folder.label_N, classes, settings.search, device)
        return result | {"names": folder.names, "templates": templates}

    def text(self, result: dict[str, Any]) -> str:
        return table(result, "Zero-shot classification")
