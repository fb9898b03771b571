"""What the cells say: the two primary contrasts with Holm's correction, and everything else with only intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claim.paired import LEVEL as COVERED
from benchmarks.claim.paired import Comparison, compare, holm, student_quantile
from benchmarks.claim.scores import unpack
from benchmarks.claim.table import COMPARISON, comparison_row, markdown, spread
from benchmarks.claim2.campaign import CELLS, TUNE, Campaign
from benchmarks.claim2.plan import (
    ARMS,
    CURVE,
    JOINT,
    PRIMARY_CONTRASTS,
    PRIMARY_MEASURES,
    PRIMARY_SHARE,
    SHARES,
    Size,
)

LEVEL = 0.05
FEWEST = 3  # seeds, for an interval around a curve: with two it would be off the plot
TITLES = {"foils": "foils", "recall": "mean recall"}
NUMBERS = {
    "foils": "foils",
    "recall": "mean recall",
    "recall_reranked_concepts": "of concepts",
    "recall_reranked_designers": "of designers",
    "recall_reranked_both": "of both",
    "foils_words": "foils by words",
    "words_right": "words, right image",
    "words_none": "none",
    "words_wrong": "wrong",
}
SCENES = {
    "foils": "foils",
    "recall": "mean recall",
    "grounded": "colour words at their cell",
    "grounded_picture": "false caption: at the picture's",
    "grounded_sentence": "at the sentence's",
    "answers": "questions",
}
Records = Sequence[dict[str, Any]]


def summary(campaign: Campaign) -> str:
    """Markdown; draws the curves beside the cells. Until the primary contrasts are complete no score is shown."""
    records = list(campaign.records().values())
    icons = [r for r in records if r["cell"].startswith("icons/") and "/rate" not in r["cell"]]
    scenes = [r for r in records if r["cell"].startswith("scenes/")]
    parts = [primary(icons, campaign.size)]
    if not waiting(icons, campaign.size):
        parts += [_numbers(icons), contrasts(icons), _scenes(scenes)]
        draw_curves(icons, campaign.results / "curves.png")
    return "\n\n".join(part for part in [*parts, _costs(campaign, icons)] if part)


def by_seed(records: Records, arm: str, share: int) -> dict[int, dict[str, Any]]:
    return {r["seed"]: r for r in records if (r["arm"], r["share"]) == (arm, share)}


def primary(records: Records, size: Size) -> str:
    """The answer: two contrasts on two measures, corrected by Holm over the four. None is shown until all are there."""
    if waiting(records, size):
        return waiting(records, size)
    found: list[tuple[str, str, Comparison]] = []
    for treatment, control in PRIMARY_CONTRASTS:
        sides = [by_seed(records, arm, PRIMARY_SHARE) for arm in (treatment, control)]
        found += [(f"{treatment} − {control}", measure, compared(*sides, measure)) for measure in PRIMARY_MEASURES]
    corrected = holm([each.p for _, _, each in found])
    rows = [
        [title, TITLES[measure], *comparison_row(each), f"{p:.3f}", verdict(each, p)]
        for (title, measure, each), p in zip(found, corrected, strict=True)
    ]
    return markdown([*COMPARISON, "Holm's p", "answer"], rows)


def waiting(records: Records, size: Size) -> str:
    """A sentence on what the primary contrasts still wait for; "" once all their cells are there."""
    arms = dict.fromkeys(arm for contrast in PRIMARY_CONTRASTS for arm in contrast)
    done = {arm: len(by_seed(records, arm, PRIMARY_SHARE)) for arm in arms}
    if min(done.values()) >= size.primary_seeds:
        return ""
    told = ", ".join(f"{count} of {arm}" for arm, count in done.items())
    return f"The primary contrasts wait for their cells: of {size.primary_seeds} seeds, {told} are there."


def verdict(found: Comparison, corrected_p: float) -> str:
    if corrected_p >= LEVEL:
        return "no difference shown"
    return "better" if found.difference > 0 else "worse"


def compared(treatment: dict[int, Any], control: dict[int, Any], measure: str) -> Comparison:
    """Compare two arms over the seeds that both have, and over units."""
    seeds = sorted(treatment.keys() & control.keys())
    sides = (np.stack([unpack(side[seed]["units"][measure]) for seed in seeds]) for side in (treatment, control))
    return compare(*sides)


def contrasts(records: Records) -> str:
    """The joint arm against each other arm, at each share: descriptive, without tests."""
    rows = []
    for share in SHARES:
        for arm in ARMS:
            sides = by_seed(records, JOINT, share), by_seed(records, arm, share)
            if arm == JOINT or len(sides[0].keys() & sides[1].keys()) < 2:
                continue
            for measure in PRIMARY_MEASURES:
                found = compared(*sides, measure)
                rows.append([f"{JOINT} − {arm}, {share} %", TITLES[measure], *comparison_row(found)[:4]])
    return markdown(COMPARISON[:6], rows) if rows else ""


def _numbers(records: Records) -> str:
    rows = []
    for share in SHARES:
        for arm in ARMS:
            if cells := list(by_seed(records, arm, share).values()):
                rows.append([arm, f"{share} %", str(len(cells)), *_means(cells, NUMBERS)])
    return markdown(["arm", "pairs", "seeds", *NUMBERS.values()], rows) if rows else ""


def _scenes(records: Records) -> str:
    rows = []
    for arm in ARMS:
        if cells := [r for r in records if r["arm"] == arm]:
            seeds = {tune: sum(r["tune"] == tune for r in cells) for tune in ("", TUNE)}
            rows.append([arm, f"{seeds['']}, {seeds[TUNE]}", *_means(cells, SCENES)])
    return markdown(["arm, on scenes", "seeds, fine-tuned", *SCENES.values()], rows) if rows else ""


def _means(cells: Records, names: dict[str, str]) -> list[str]:
    return [spread([c["numbers"][name] for c in cells if name in c["numbers"]], "recall_itc") for name in names]


def _costs(campaign: Campaign, records: Records) -> str:
    if not (campaign.results / CELLS).exists():
        return ""
    rates, rows = campaign.rates(), []
    for arm, cost in campaign.costs().items():
        spent = [r["training_s"] for r in records if r["arm"] == arm]
        took = f"{statistics.fmean(spent):,.0f}" if spent else ""
        costs = f"{1 / cost['seconds']:.0f}", f"{cost['gflop']:.3f}", f"{cost['steps']:,.0f}"
        rows.append([arm, *costs, took, f"{rates[arm]:.2f}" if arm in rates else ""])
    head = ["arm", "pairs a second", "GFLOP a pair", "steps", "seconds of the clock, mean", "rate, of the size's"]
    return markdown(head, rows)


def curve(cells: Records, measure: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For cells that differ only in their seed, at each evaluation: the share of the training time, the mean score on
    the validation rows in per cent, and half the width of the 95 % interval over seeds, 0 if they are fewer than
    three."""
    evaluated = [cell["curve"][:CURVE] for cell in cells]
    points = min(map(len, evaluated), default=0)
    score_SP = np.array([[100 * at[measure] for at in each[:points]] for each in evaluated]).reshape(len(cells), points)
    at_P, seeds, reach_P = np.arange(1, points + 1) / CURVE, len(cells), np.zeros(points)
    if seeds >= FEWEST:
        reach_P = student_quantile((1 + COVERED) / 2, seeds - 1) * score_SP.std(0, ddof=1) / seeds**0.5
    return at_P, score_SP.mean(0) if seeds else reach_P, reach_P


def draw_curves(records: Records, out: Path) -> None:
    """Both measures on the validation rows over the share of the training time: a line with its interval for each arm
    and share that has cells."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shares = [share for share in SHARES if any(by_seed(records, arm, share) for arm in ARMS)]
    shape = len(PRIMARY_MEASURES), len(shares)
    figure, axes = pyplot.subplots(*shape, figsize=(1.5 + 3.5 * len(shares), 6), sharex=True, squeeze=False)
    for (row, measure), (column, share) in product(enumerate(PRIMARY_MEASURES), enumerate(shares)):
        axis = axes[row][column]
        for number, arm in enumerate(ARMS):
            if cells := list(by_seed(records, arm, share).values()):
                at_P, mean_P, reach_P = curve(cells, measure)
                axis.plot(at_P, mean_P, label=arm, marker=".", color=f"C{number}")
                axis.fill_between(at_P, mean_P - reach_P, mean_P + reach_P, color=f"C{number}", alpha=0.15, lw=0)
        axis.set_title(f"{TITLES[measure]} of validation rows, {share} %", fontsize=9)
        axis.legend(fontsize=7)
    figure.supxlabel("share of the training time", fontsize=9)
    figure.tight_layout()
    figure.savefig(out, dpi=80)
    pyplot.close(figure)
