"""What a report needs a model for: numbers not yet in the run folder, and examples to look at."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from mvlm.checkpoint.layout import has_checkpoints
from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.shards.mixture import Mixture, held_out
from mvlm.errors import UserError
from mvlm.evaluate.examples import ImageExample, TextExample, examples
from mvlm.evaluate.reconstruction import evaluate_reconstruction
from mvlm.evaluate.retrieval import Direction, Retrieval, SearchSettings, retrieve, summary
from mvlm.evaluate.settings import reading_of
from mvlm.pretrained.runs import Loaded, load_run
from mvlm.report.facts import RunFacts, read_json

POOL = 1000
"""Images that example queries are searched in, if the numbers are already known."""

SHOWN, TOP = 6, 5


@dataclass(frozen=True)
class RetrievedItem:
    """One answer to a query: a picture (uint8 [H, W, 3]), and its text if captions were searched for."""

    text: str
    picture: np.ndarray
    right: bool


@dataclass(frozen=True)
class Query:
    text: str
    picture: np.ndarray
    answers: list[RetrievedItem]
    rank: int  # of the right answer, from 1


@dataclass(frozen=True)
class Measured:
    """All that is known of a run's quality; what could not be measured is empty, with the reason in `notes`."""

    step: int | None = None
    retrieval: dict[str, Any] | None = None
    reconstruction: dict[str, Any] | None = None
    pool: int = 0  # images that the example queries were searched in
    image_queries: list[Query] = field(default_factory=list)
    text_queries: list[Query] = field(default_factory=list)
    images: list[ImageExample] = field(default_factory=list)
    texts: list[TextExample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def measure(facts: RunFacts, device: torch.device) -> Measured:
    """Read the run's retrieval.json and reconstruction.json, measure what is missing, and make examples.

    Raises:
        UserError: a file of the run is damaged.
    """
    known = Measured(
        retrieval=read_json(facts.folder / "retrieval.json"),
        reconstruction=read_json(facts.folder / "reconstruction.json"),
    )
    task = facts.blueprint.task
    if task.is_labelled:
        return replace(known, notes=[f"Fine-tuned for {task.name}: its scores are among the curves."])
    if not facts.data.eval:
        return replace(known, notes=["The run names no evaluation data (data.eval): no examples, no further numbers."])
    if not has_checkpoints(facts.folder):
        return replace(known, notes=["The run has saved no checkpoint yet: no examples, no further numbers."])
    try:
        mixture = held_out(facts.data)
    except UserError as error:
        return replace(known, notes=[f"The evaluation data cannot be opened: {error}"])
    return _with_model(facts, load_run(facts.folder, device), mixture, known, device)


def _with_model(facts: RunFacts, loaded: Loaded, mixture: Mixture, known: Measured, device: torch.device) -> Measured:
    model, settings, notes = loaded.model, facts.eval, []
    reading = reading_of(loaded)
    pool = dataset = EvalDataset(mixture, *reading, settings.limit)
    if known.retrieval and len(dataset) > POOL:
        pool = EvalDataset(mixture, *reading, POOL)
    found = retrieve(model, pool, SearchSettings.of(settings), device)
    retrieval = known.retrieval or summary(found, pool) | {"step": loaded.step}
    image_queries, text_queries = _queries(found, pool)
    reconstruction, images, texts = known.reconstruction, list[ImageExample](), list[TextExample]()
    if model.objectives.image or model.objectives.text:
        try:
            measured = reconstruction or evaluate_reconstruction(model, dataset, settings.batch, device)
            reconstruction = {"step": loaded.step} | measured
        except UserError as error:
            notes.append(f"Reconstruction was not measured: {error}")
        images, texts = examples(model, pool, reading[0], spread(len(pool)), device)
    else:
        notes.append("It was not trained to reconstruct anything (objectives.image and objectives.text are 0).")
    return Measured(
        loaded.step, retrieval, reconstruction, len(pool), image_queries, text_queries, images, texts, notes
    )


def spread(count: int) -> list[int]:
    """SHOWN of `count` indices, evenly spaced: examples are not hand-picked."""
    return np.unique(np.linspace(0, count - 1, min(count, SHOWN)).round().astype(int)).tolist()


def _queries(found: Retrieval, dataset: EvalDataset) -> tuple[list[Query], list[Query]]:
    def picture(row: int) -> np.ndarray:
        return dataset.images([row])[0].permute(1, 2, 0).numpy()

    def of_image(row: int) -> Query:
        answers = [
            RetrievedItem(dataset.captions[c], picture(int(dataset.owner[c])), right) for c, right in _top(to_text, row)
        ]
        return Query("", picture(row), answers, _place(to_text, row))

    def of_text(caption: int) -> Query:
        answers = [RetrievedItem("", picture(row), right) for row, right in _top(to_image, caption)]
        own = picture(int(dataset.owner[caption]))
        return Query(dataset.captions[caption], own, answers, _place(to_image, caption))

    to_text, to_image = found.image_to_text, found.text_to_image
    return (
        [of_image(row) for row in spread(len(dataset))],
        [of_text(caption) for caption in spread(len(dataset.captions))],
    )


def _top(direction: Direction, query: int) -> list[tuple[int, bool]]:
    right = set(direction.right[query].tolist())
    return [(item, item in right) for item in direction.top_AK[query, :TOP].tolist()]


def _place(direction: Direction, query: int) -> int:
    ranks = direction.itc_A if direction.reranked_A is None else direction.reranked_A
    return int(ranks[query]) + 1
