"""How often each kind of statement about two scenes is judged right; NLVR2's format itself has no kinds."""

from __future__ import annotations

import re
from pathlib import Path

from mvlm.data.shards.mixture import Mixture
from mvlm.evaluate.accuracy import mean_by

KINDS = {
    "one side": r"the (left|right) image (shows|does not show) ",
    "both": r"(it is not so that )?both images show an? ",
    "either": r"(at least one|neither) image shows ",
    "more": r"there are (not )?more ",
    "the same number": r"(both images show the same number|the images show different numbers) of ",
    "number of both together": r"the number of \w+( things)? in both images together is ",
}
"""Kinds by the beginnings of their statements, as `data_tools/synth/pairs.py` words them."""


def by_kind_of_statement(predictions: Path, data: Path) -> dict[str, dict[str, float]]:
    """{kind: {"score": share judged right, "rows": count}}, from predictions in the format of NLVR2's metrics."""
    mixture = Mixture([data], task="nlvr2")
    rows = [mixture.row(row).own for row in range(len(mixture))]
    labels = [line.rpartition(",")[2] for line in predictions.read_text(encoding="utf-8").splitlines()]
    right = (label == str(row["label"]) for label, row in zip(labels, rows, strict=True))
    return mean_by([kind_of(row["sentence"]) for row in rows], right)


def kind_of(sentence: str) -> str:
    """The kind of a statement, one of KINDS."""
    return next(kind for kind, pattern in KINDS.items() if re.match(pattern, sentence.lower()))
