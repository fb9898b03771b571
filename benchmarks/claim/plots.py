"""The plots: limited data, the ablation with intervals, and pictures reconstructed by each run that still exists."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.claim.cell import run_name
from benchmarks.claim.corpora import EVAL
from benchmarks.claim.grid import ABLATION, ALBEF, ALL_FOUR, BASELINE, COMPUTE, OBJECTIVES, SHARES, STEPS, Cell
from benchmarks.claim.measured import Measured
from benchmarks.claim.paired import LEVEL, student_quantile
from mvlm.checkpoint.layout import CHECKPOINTS, LATEST

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = {
    "all four": (ALL_FOUR, STEPS),
    "ITC + ITM": (BASELINE, STEPS),
    "ITC + ITM, equal compute": (BASELINE, COMPUTE),
    "ALBEF-like": (ALBEF, STEPS),
    "ALBEF-like, equal compute": (ALBEF, COMPUTE),
}
TITLES = {"foils": "foils right, %", "recall": "mean recall, %", "answers": "questions right, fine-tuned, %"}
PRETRAINED = ("foils", "recall")
"""What is measured without fine-tuning."""


def limited_data(measured: Measured, file: Path) -> None:
    """Scores against the share of the training pairs; bars are intervals at LEVEL of the seeds' mean."""
    panels = [
        (corpus, name)
        for corpus in measured.corpora
        for name in TITLES
        if any(measured.values(_cell(corpus, ALL_FOUR, share, STEPS, name), name) for share in SHARES)
    ]
    _draw(panels, file, lambda axes, panel: _curves(axes, measured, *panel))


def ablation(measured: Measured, file: Path) -> None:
    """A bar for each row of the paper's Table 5, and the ALBEF-like one."""
    panels = [
        (corpus, name)
        for corpus in measured.corpora
        for name in PRETRAINED
        if measured.values(Cell(corpus, ALL_FOUR), name)
    ]
    _draw(panels, file, lambda axes, panel: _bars(axes, measured, *panel))


SHOWN = 6
"""Test pairs whose pictures are reconstructed."""


def reconstructions(measured: Measured, folder: Path, file: Path) -> None:
    """The first test images of each corpus, reconstructed by each objective of which a run still exists."""
    rows = []
    for corpus in measured.corpora:
        data = folder / "corpora" / corpus / EVAL
        for objective in OBJECTIVES if data.exists() else ():
            if run := _kept_run(measured, folder, Cell(corpus, objective)):
                rows.append((f"{corpus}\n{objective}", _restored(run, data)))
    if not rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * SHOWN, 0.9 * len(rows) + 0.4), layout="constrained")
    for axes, (title, strip) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        axes.imshow(strip)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=7)
    figure.suptitle("as it is, hidden, restored with its text, without", fontsize=8)
    figure.savefig(file, dpi=110)


def _kept_run(measured: Measured, folder: Path, cell: Cell) -> Path | None:
    """The run folder of the first seed whose run still exists and was trained to reconstruct pixels."""
    for seed, record in sorted(measured.cells.get(cell.kind, {}).items()):
        run = folder / measured.size / run_name(replace(cell, seed=seed), record["settings"])
        if "pixels_right" in record["numbers"] and (run / CHECKPOINTS / LATEST).exists():
            return run
    return None


def _restored(run: Path, data: Path) -> np.ndarray:
    """uint8 [H, W, 3]: for each of SHOWN pairs, the image, masked, and reconstructed with and without text."""
    from mvlm.data.samples.evaluation import EvalDataset
    from mvlm.data.shards.mixture import Mixture
    from mvlm.evaluate.examples import examples
    from mvlm.evaluate.settings import reading_of
    from mvlm.pretrained.runs import load_run
    from mvlm.runtime.dist import device

    loaded = load_run(run, device())
    tokenizer, length, size = reading_of(loaded)
    dataset = EvalDataset(Mixture([data]), tokenizer, length, size)
    images, _ = examples(loaded.model, dataset, tokenizer, range(SHOWN), device())
    pictures = [picture for i in images for picture in (i.original, i.masked, i.with_text, i.without_text)]
    return np.concatenate([np.pad(p, ((2, 2), (2, 2), (0, 0)), constant_values=255) for p in pictures], axis=1)


def _cell(corpus: str, objective: str, share: int, budget: str, name: str) -> Cell:
    """The cell in which `name` is measured."""
    return Cell(corpus, objective, share, budget, "" if name in PRETRAINED else "vqa")


def _draw(panels: list[tuple[str, str]], file: Path, draw) -> None:
    if not panels:
        return
    from matplotlib.figure import Figure

    rows = math.ceil(len(panels) / 3)
    columns = math.ceil(len(panels) / rows)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place)
        draw(axes, panel)
        axes.set_title(panel[0])
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


def _curves(axes: Axes, measured: Measured, corpus: str, name: str) -> None:
    for label, (objective, budget) in CURVES.items():
        found = {share: measured.values(_cell(corpus, objective, share, budget, name), name) for share in SHARES}
        shares = sorted(share for share, values in found.items() if values)
        if shares:
            means, reaches = zip(*(_mean(found[share]) for share in shares), strict=True)
            axes.errorbar(shares, means, reaches, marker="o", capsize=3, label=label, lw=1.5, ms=4)
    axes.set_xscale("log")
    axes.set_xticks(SHARES, [f"{share} %" for share in SHARES])
    axes.minorticks_off()
    axes.set_xlabel("of the training pairs")
    axes.set_ylabel(TITLES[name])
    axes.legend(frameon=False, fontsize=8)


def _bars(axes: Axes, measured: Measured, corpus: str, name: str) -> None:
    found = {objective: measured.values(Cell(corpus, objective), name) for objective in (*ABLATION, ALBEF)}
    found = {objective: values for objective, values in found.items() if values}
    for place, values in enumerate(found.values()):
        mean, reach = _mean(values)
        axes.barh(place, mean, xerr=reach, capsize=3, color="tab:blue", alpha=0.5)
        axes.plot(100 * np.array(values), np.full(len(values), place), "k.", ms=4)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlabel(TITLES[name])


def _mean(values: list[float]) -> tuple[float, float]:
    """Mean in per cent, and half the width of Student's interval of it over seeds; 0 below three seeds.

    With two seeds it is thirteen standard errors, which would dwarf everything else in the plot.
    """
    count = len(values)
    if count < 3:
        return 100 * float(np.mean(values)), 0.0
    reach = student_quantile((1 + LEVEL) / 2, count - 1) * np.std(values, ddof=1) / count**0.5
    return 100 * float(np.mean(values)), 100 * float(reach)
