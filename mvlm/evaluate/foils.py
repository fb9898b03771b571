"""Foils: whether the true sentence of an image scores above one with two colours or two shapes exchanged.

Retrieval does not test this: a bag of words tells nearly all scenes apart, but none from its foil.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from rich.table import Table

from mvlm.data.samples.foils import FoilDataset
from mvlm.data.shards.mixture import Mixture
from mvlm.evaluate import intervals, shares
from mvlm.evaluate.matching import match_pairs
from mvlm.evaluate.retrieval import SearchSettings, image_features, text_features
from mvlm.evaluate.settings import Settings, reading_of
from mvlm.evaluate.tables import percent, render
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.runs import Loaded

CHANCE = 0.5
T = TypeVar("T")


def evaluate_foils(
    model: MaskVLM, dataset: FoilDataset, search: SearchSettings, device: torch.device
) -> dict[str, Any]:
    """Share of the rows whose true sentence scores above its foil; equal scores count half.

    Returns:
        `accuracy` by scorer, `itc` and, for a model trained with it, `itm`: {`all`, and each value of `swapped`};
        `interval`, the same tree; `chance`; `rows`; `protocol`.
    """
    rows, right = len(dataset), verdicts(model, dataset, search, device)
    kinds = {"all": np.ones(rows, dtype=bool)}
    kinds |= {kind: np.array(dataset.swapped) == kind for kind in sorted(set(dataset.swapped))}
    group_N = _groups(dataset)

    def accuracy(drawn_RG: np.ndarray) -> dict[str, np.ndarray]:
        weight_RN = drawn_RG[:, group_N]
        with np.errstate(invalid="ignore"):  # a resample may have no rows of a kind
            return {
                f"{scorer}/{kind}": weight_RN @ (right_N * of_kind) / (weight_RN @ of_kind)
                for kind, of_kind in kinds.items()
                for scorer, right_N in right.items()
            }

    groups = int(group_N.max()) + 1
    return {
        "accuracy": _by_scorer(intervals.point(groups, accuracy)),
        "interval": _by_scorer(intervals.bootstrap(groups, accuracy)),
        "chance": CHANCE,
        "rows": rows,
        "protocol": (
            f"{rows} images, each with its sentence and that sentence with two words exchanged; right where the true "
            "one scores higher, equal scores count half; ITC is cosine similarity, ITM the log-odds of a match. "
            + intervals.explain(f"the {groups} pairs of sentences, each with all its rows").removesuffix(".")
            + ": a scorer that reads the text alone has one half right in each."
        ),
    }


def verdicts(
    model: MaskVLM, dataset: FoilDataset, search: SearchSettings, device: torch.device
) -> dict[str, np.ndarray]:
    """By scorer, `itc` and perhaps `itm`: 1 for each row whose true sentence scores above its foil, 0.5 for a tie."""
    sizes = search.sizes(model, dataset)
    with shares.inference(model):
        image_NE = image_features(model, dataset, sizes.batch, device)
        text_N2E = text_features(model, dataset, sizes.batch, device).unflatten(0, (len(dataset), 2))
        scores = {"itc": (image_NE[:, None] * text_N2E).sum(-1).cpu().numpy()}
        if model.objectives.itm:
            first_N = np.arange(len(dataset)) * (len(dataset.captions) + 2)  # image i and its own sentence, 2 i
            pair_P = (first_N[:, None] + np.arange(2)).ravel()
            scores["itm"] = match_pairs(model, dataset, pair_P, sizes, device).reshape(-1, 2)
    return {scorer: np.heaviside(score_N2[:, 0] - score_N2[:, 1], 0.5) for scorer, score_N2 in scores.items()}


def _by_scorer(flat: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Nest names such as `itc/all` by scorer and then by what is exchanged, which may itself have slashes."""
    tree: dict[str, dict[str, T]] = {}
    for name, value in flat.items():
        scorer, _, kind = name.partition("/")
        tree.setdefault(scorer, {})[kind] = value
    return tree


def _groups(dataset: FoilDataset) -> np.ndarray:
    """A number for each row, shared by those with the same two sentences."""
    numbers: dict[frozenset[str], int] = {}
    pairs = (frozenset(dataset.captions[2 * row : 2 * row + 2]) for row in range(len(dataset)))
    return np.array([numbers.setdefault(pair, len(numbers)) for pair in pairs])


class FoilsTask:
    name = "foils"

    def run(self, loaded: Loaded, settings: Settings, device: torch.device) -> dict[str, Any]:
        mixture = Mixture(settings.data, task="foils")
        dataset = FoilDataset(mixture, *reading_of(loaded), settings.limit)
        result = evaluate_foils(loaded.model, dataset, settings.search, device)
        return result | {"fingerprint": mixture.fingerprint}

    def text(self, result: dict[str, Any]) -> str:
        scorers = list(result["accuracy"])
        table = Table("swapped", *map(str.upper, scorers), title="True sentence above its foil, % (95 % interval)")
        for kind in result["accuracy"]["itc"]:
            numbers = ((result["accuracy"][scorer][kind], result["interval"][scorer][kind]) for scorer in scorers)
            table.add_row(kind, *(percent(*each) for each in numbers))
        table.add_row("chance", *[percent(result["chance"])] * len(scorers))
        return render(table, result["protocol"])
