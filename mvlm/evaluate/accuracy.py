"""Scores of the fine-tuning tasks, as pure functions of predictions and of what people said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from mvlm.data.samples.answers import normalize_answer, strip_answer


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """How right an answer is, 0 to 1: min(others who gave it / 3, 1), averaged over leaving each person out.

    Equal to github.com/GT-Vision-Lab/VQA, vqaEval.py, which leaves spelling alone if all people agree.
    """
    given, prediction = [strip_answer(answer) for answer in answers], strip_answer(prediction)
    if len(set(given)) > 1:
        given, prediction = [normalize_answer(answer) for answer in given], normalize_answer(prediction)
    same = sum(answer == prediction for answer in given)
    return sum(min(1.0, (same - (answer == prediction)) / 3) for answer in given) / len(given)


def consistency(predictions: Sequence[object], labels: Sequence[object], groups: Sequence[str]) -> float:
    """Share of the groups, NLVR2's sentences, whose rows are all predicted right (Suhr et al., arXiv 1811.00491)."""
    right: dict[str, bool] = {}
    for prediction, label, group in zip(predictions, labels, groups, strict=True):
        right[group] = right.get(group, True) and prediction == label
    return sum(right.values()) / len(right)


def mean_by(kinds: Sequence[str], scores: Iterable[float]) -> dict[str, dict[str, float]]:
    """{kind: {"score": mean, "rows": count}}, the kinds in alphabetical order."""
    of_kind: dict[str, list[float]] = defaultdict(list)
    for kind, score in zip(kinds, scores, strict=True):
        of_kind[kind].append(score)
    return {
        kind: {"score": sum(of_kind[kind]) / len(of_kind[kind]), "rows": len(of_kind[kind])} for kind in sorted(of_kind)
    }
