"""What `mvlm evaluate` can measure; a new task is one file and one line in TASKS."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.table import Table

from mvlm.data.dataset import EvalDataset
from mvlm.evaluate.reconstruction import evaluate_reconstruction
from mvlm.evaluate.retrieval import evaluate_retrieval
from mvlm.model.maskvlm import MaskVLM


@dataclass(frozen=True)
class Settings:
    """Of all tasks; each reads those that concern it."""

    batch: int  # images, texts or pairs in a forward pass
    rerank: int  # retrieval: candidates a query that ITM orders again; 0 = none
    words: tuple[str, ...] = ()  # reconstruction: words to hide; none = tokens drawn as in training


class Task(Protocol):
    name: str

    def run(self, model: MaskVLM, dataset: EvalDataset, settings: Settings, device: torch.device) -> dict[str, Any]:
        """Measure; called on every rank at once, the same result on all. It can be written as JSON."""
        ...

    def text(self, result: dict[str, Any]) -> str:
        """The result as a table with its protocol, for a terminal."""
        ...


class Retrieval:
    name = "retrieval"

    def run(self, model: MaskVLM, dataset: EvalDataset, settings: Settings, device: torch.device) -> dict[str, Any]:
        return evaluate_retrieval(model, dataset, settings.batch, settings.rerank, device)

    def text(self, result: dict[str, Any]) -> str:
        table = Table("recall", "ranked by", "R@1", "R@5", "R@10", title="Retrieval, % of queries")
        for direction, name in (("image_to_text", "image to text"), ("text_to_image", "text to image")):
            for key, ranked_by in (("itc", "ITC"), ("reranked", "ITM re-ranked")):
                if result[direction][key]:
                    table.add_row(name, ranked_by, *_percent(result[direction][key]))
        table.add_row("chance", "", *_percent(result["chance"]))
        return _render(table, result["protocol"])


class Reconstruction:
    name = "reconstruction"

    def run(self, model: MaskVLM, dataset: EvalDataset, settings: Settings, device: torch.device) -> dict[str, Any]:
        return evaluate_reconstruction(model, dataset, settings.batch, device, settings.words)

    def text(self, result: dict[str, Any]) -> str:
        columns = ("with", "the right other modality", "none", "another pair's", "a constant")
        table = Table(*columns, title="Restoring what is hidden")
        for key, name, form in (
            ("word_accuracy", "words right", "{:.1%}"),
            ("word_loss", "word loss, nats", "{:.3f}"),
            ("pixel_l1", "pixel L1", "{:.3f}"),
        ):
            scores = result[key]
            shown = (form.format(scores[c]) if c in scores else "" for c in ("right", "none", "wrong", "constant"))
            table.add_row(name, *shown)
        return _render(table, result["protocol"])


TASKS: dict[str, Task] = {task.name: task for task in (Retrieval(), Reconstruction())}


def _percent(recalls: dict[str, float]) -> Sequence[str]:
    return [f"{100 * recalls[key]:.1f}" for key in ("r1", "r5", "r10")]


def _render(table: Table, protocol: str) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100)
    console.print(table)
    console.print(protocol, markup=False, highlight=False)
    return out.getvalue()
