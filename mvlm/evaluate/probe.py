"""Linear probe: a logistic regression on the frozen image encoder's CLS features (CLIP, arXiv 2103.00020, A.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.data.samples.pictures import ClassFolder, Pictures
from mvlm.errors import UserError
from mvlm.evaluate import intervals, shares
from mvlm.evaluate.classification import one_folder, scores, table
from mvlm.evaluate.settings import Settings, open_pictures
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.runs import Loaded
from mvlm.runtime import dist

STRENGTHS = tuple(10.0**power for power in range(-6, 3))
"""Strengths of the penalty to try; the one that does best on the held-out training pictures is used."""

HELD_OUT = 5
"""Every fifth picture of each class is held out to choose the penalty."""

STEPS = 500


def fit(feature_XD: Tensor, label_X: Tensor, classes: int, strength: float) -> Tensor:
    """Weights [D + 1, classes], the last row the bias, that minimise the mean cross-entropy
    + strength / 2 x the squared weights without the bias; in the features' precision.
    """
    ones_XD = torch.cat([feature_XD, feature_XD.new_ones(len(feature_XD), 1)], dim=1)
    weight_DC = ones_XD.new_zeros(ones_XD.shape[1], classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_DC], max_iter=STEPS, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(ones_XD @ weight_DC, label_X) + strength / 2 * weight_DC[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weight_DC.detach()


def classify(feature_XD: Tensor, weight_DC: Tensor) -> Tensor:
    """Logits XC."""
    return feature_XD @ weight_DC[:-1] + weight_DC[-1]


def fit_chosen(feature_XD: Tensor, label_X: Tensor, classes: int) -> tuple[Tensor, float]:
    """The weights at the strength that is best on held-out pictures, fitted to all pictures, and that strength."""
    held_X = _held_out(label_X)
    shown = feature_XD[~held_X], label_X[~held_X]
    right = []
    for strength in STRENGTHS:
        chosen_X = classify(feature_XD[held_X], fit(*shown, classes, strength)).argmax(dim=1)
        right.append(int((chosen_X == label_X[held_X]).sum()))
    best = max(range(len(STRENGTHS)), key=lambda number: (right[number], number))
    return fit(feature_XD, label_X, classes, STRENGTHS[best]), STRENGTHS[best]


def _held_out(label_X: Tensor) -> Tensor:
    """Every fifth of each class, from its second: the only picture of a class is never held out."""
    held_X = torch.zeros(len(label_X), dtype=torch.bool)
    for label in label_X.unique():
        held_X[(label_X == label).nonzero()[1::HELD_OUT, 0]] = True
    return held_X


def cls_features(model: MaskVLM, pictures: Pictures, batch: int, device: torch.device) -> Tensor:
    """The image encoder's CLS of each picture, ND in fp64 on the host."""
    with shares.inference(model):
        parts = []
        for rows in shares.batches(len(pictures), batch):
            parts.append(model.encode_image(pictures.images(rows.tolist()).to(device))[:, 0].float())
        return shares.gather(parts, len(pictures)).double().cpu()


class LinearProbeTask:
    name = "probe"

    def run(self, loaded: Loaded, settings: Settings, device: torch.device) -> dict[str, Any]:
        if not settings.train:
            raise UserError("A probe has to learn from something: give --train a folder of classes like --data's.")
        test, train = one_folder(settings), ClassFolder(settings.train)
        if test.names != train.names:
            odd = sorted(set(test.names) ^ set(train.names))
            raise UserError(
                f"{settings.train} and {settings.data[0]} differ in {odd[0]!r}: both need the same classes."
            )

        def features(folder: ClassFolder) -> Tensor:
            return cls_features(loaded.model, open_pictures(loaded, folder.paths), settings.search.batch, device)

        train_XD, test_ND = features(train), features(test)
        mean, std = train_XD.mean(dim=0), train_XD.std(dim=0) + 1e-6
        rank_N, strength = dist.broadcast_object(
            _rank(train, (train_XD - mean) / std, (test_ND - mean) / std, test.label_N) if dist.rank() == 0 else None
        )
        result = scores(rank_N, test.label_N, len(test.names)) | {"names": test.names, "strength": strength}
        seen = len(set(train.paths) & set(test.paths))
        return result | {"train_images": len(train.paths), "protocol": _protocol(result, train.label_N, seen)}

    def text(self, result: dict[str, Any]) -> str:
        return table(result, "Linear probe")


def _rank(train: ClassFolder, train_XD: Tensor, test_ND: Tensor, label_N: np.ndarray) -> tuple[np.ndarray, float]:
    """The place of each test picture's class, and the strength of the penalty."""
    label_X = torch.from_numpy(train.label_N)
    weight_DC, strength = fit_chosen(train_XD, label_X, len(train.names))
    order_NC = classify(test_ND, weight_DC).argsort(dim=1, descending=True, stable=True).numpy()
    return (order_NC == label_N[:, None]).argmax(axis=1), strength


def _protocol(result: dict[str, Any], label_X: np.ndarray, seen: int) -> str:
    others = f"{result['images']} others" if not seen else f"{result['images']}, {seen} of which it has learned from"
    chosen = (
        "the one that is best on every fifth training picture"
        if _held_out(torch.from_numpy(label_X)).any()
        else "the strongest, for no class has a second picture to choose by"
    )
    return (
        f"A logistic regression on the frozen image encoder's CLS features, standardised, learned from {len(label_X)} "
        f"pictures and tried on {others}; of {len(STRENGTHS)} L2 penalties {chosen}, "
        f"{result['strength']:g}, fitted to all of them. "
        f"{intervals.explain('the pictures')}"
    )
