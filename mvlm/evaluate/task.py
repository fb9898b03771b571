"""What `mvlm evaluate` can measure; a new task is one file and one line in TASKS."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.table import Table

from mvlm.evaluate.classification import ClassificationTask
from mvlm.evaluate.foils import FoilsTask
from mvlm.evaluate.labelled import TITLES, LabelledTask
from mvlm.evaluate.pictures import write_pictures
from mvlm.evaluate.probe import LinearProbeTask
from mvlm.evaluate.reconstruction import evaluate_reconstruction
from mvlm.evaluate.retrieval import evaluate_retrieval
from mvlm.evaluate.settings import Settings, captions_of
from mvlm.evaluate.tables import percent, render
from mvlm.pretrained.runs import Loaded

EXAMPLES = 8
"""Images drawn with their reconstructions."""


class EvaluationTask(Protocol):
    name: str

    def run(self, loaded: Loaded, settings: Settings, device: torch.device) -> dict[str, Any]:
        """Open the data and measure; called on every rank at once, with one result on all, which JSON can hold.

        Raises:
            UserError: the data cannot be used.
        """
        ...

    def text(self, result: dict[str, Any]) -> str:
        """The result as a table with its protocol, for a terminal."""
        ...


class RetrievalTask:
    name = "retrieval"

    def run(self, loaded: Loaded, settings: Settings, device: torch.device) -> dict[str, Any]:
        dataset = captions_of(loaded, settings)
        result = evaluate_retrieval(loaded.model, dataset, settings.search, device)
        return result | {"fingerprint": dataset.mixture.fingerprint}

    def text(self, result: dict[str, Any]) -> str:
        columns = ("recall", "ranked by", "R@1", "R@5", "R@10", "median rank")
        table = Table(*columns, title="Retrieval, % of queries (95 % interval)")
        ranked_by = {"itc": "ITC", "reranked": "ITM re-ranked", "summed": "ITM + ITC"}
        done = [kind for kind in ranked_by if result["image_to_text"][kind]]
        intervals = result["interval"]
        for direction, name in (("image_to_text", "image to text"), ("text_to_image", "text to image")):
            for kind in done:
                numbers, ends = result[direction][kind], intervals[direction][kind]
                shares = [percent(numbers[key], ends[key]) for key in ("r1", "r5", "r10")]
                table.add_row(name, ranked_by[kind], *shares, f"{numbers['median_rank']:g}")
        table.add_row("chance", "", *(percent(result["chance"][key]) for key in ("r1", "r5", "r10")))
        for kind in done:
            mean = percent(result["mean_recall"][kind], intervals["mean_recall"][kind])
            table.add_row("mean recall", ranked_by[kind], mean)
        return render(table, result["protocol"])


class ReconstructionTask:
    name = "reconstruction"

    def run(self, loaded: Loaded, settings: Settings, device: torch.device) -> dict[str, Any]:
        dataset = captions_of(loaded, settings)
        result = evaluate_reconstruction(loaded.model, dataset, settings.search.batch, device, settings.words)
        if settings.pictures:
            folder = Path(settings.pictures)
            with suppress(OSError):  # writing the pictures will report it
                folder.mkdir(parents=True, exist_ok=True)
            write_pictures(loaded.model, dataset, EXAMPLES, folder, loaded.step, device)
        return result | {"fingerprint": dataset.mixture.fingerprint}

    def text(self, result: dict[str, Any]) -> str:
        columns = ("with", "right", "none", "wrong", "constant")
        table = Table(*columns, title="Reconstructing what is masked")
        for key, name, form in (
            ("word_accuracy", "words right", "{:.1%}"),
            ("word_loss", "word loss, nats", "{:.3f}"),
            ("pixel_l1", "pixel L1", "{:.3f}"),
        ):
            scores = result[key]
            shown = (form.format(scores[c]) if c in scores else "" for c in ("right", "none", "wrong", "constant"))
            table.add_row(name, *shown)
        return render(table, result["protocol"])


_ALL: tuple[EvaluationTask, ...] = (
    RetrievalTask(),
    ReconstructionTask(),
    ClassificationTask(),
    LinearProbeTask(),
    FoilsTask(),
    *map(LabelledTask, TITLES),
)
TASKS = {task.name: task for task in _ALL}
