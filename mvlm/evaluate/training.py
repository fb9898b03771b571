"""Retrieval, or the task that it is fine-tuned for, on the held-out shards while a run trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mvlm.config.schema import Config
from mvlm.data.samples.evaluation import EvalDataset, LabelledEvalDataset
from mvlm.data.samples.labelled import class_names
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.data.shards.corpus import Mixture, held_out
from mvlm.evaluate.labelled import evaluate_labelled
from mvlm.evaluate.pictures import is_due, write_pictures
from mvlm.evaluate.ranking import RECALLS
from mvlm.evaluate.retrieval import DIRECTIONS, Search, evaluate_retrieval
from mvlm.model.finetune import TaskModel
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import dist

LONG_SECONDS = 30.0
"""A shorter evaluation is never put off."""


class Evaluated(NamedTuple):
    """Flat metrics, and pictures for people to look at, where there are any."""

    metrics: dict[str, float]
    picture: Path | None = None


def evaluator(config: Config) -> Callable[[Any, Path, int, bool], Evaluated] | None:
    """What the training loop calls on every rank with (model, run folder, step, whether it is the last), if anything.

    Named `eval/<direction>_<r1|r5|r10>` after ITC and `eval/<direction>_reranked_<...>` after ITM, and
    `eval/mean_recall`, of the re-ranked ones where there are such; for a task that chooses among classes
    `eval/accuracy`, NLVR2's `eval/consistency`, and `eval/<kind of row>`. Where the evaluation before took over half a
    minute and more than `eval.share` of the time trained since, this one is put off to the next turn: `eval/put_off` is
    the seconds it would have taken. What is measured is always the same, so that the numbers of a run can be compared.

    Raises:
        UserError: at once, if `data.eval` cannot be opened.
    """
    if not config.data.eval:
        return None
    run = Path(config.run.dir)
    mixture = held_out(config.data, config.task.corpus, config.data.patience)
    measure = _choosing(config, run, mixture) if config.task.is_labelled else _retrieval(config, run, mixture)
    pace = Pace(config.eval.share)

    def evaluate(model: Any, folder: Path, step: int, last: bool) -> Evaluated:
        if not last and pace.too_soon():
            return Evaluated({"eval/put_off": pace.seconds})
        with pace:
            return measure(model, step, last)

    return evaluate


Measure = Callable[[Any, int, bool], Evaluated]
"""(model, step, whether it is the last) -> what was found."""


def _retrieval(config: Config, run: Path, mixture: Mixture) -> Measure:
    search = Search(config.eval.batch, config.eval.rerank, config.eval.memory_gb)

    @cache  # the run's tokenizer is not there before training begins
    def opened() -> EvalDataset:
        return EvalDataset(mixture, load_tokenizer(str(run / "tokenizer")), config, config.eval.limit)

    def measure(model: MaskVLM, step: int, last: bool) -> Evaluated:
        metrics = flat_metrics(evaluate_retrieval(model, opened(), search, dist.device()))
        count = config.log.pictures if config.objectives.image else 0
        if not count or not (last or is_due(step // config.eval.every)):
            return Evaluated(metrics)
        return Evaluated(metrics, write_pictures(model, opened(), count, run, step, dist.device()))

    return measure


def _choosing(config: Config, run: Path, mixture: Mixture) -> Measure:
    @cache
    def opened() -> LabelledEvalDataset:
        return LabelledEvalDataset(mixture, load_tokenizer(str(run / "tokenizer")), config, config.eval.limit)

    def measure(model: TaskModel, step: int, last: bool) -> Evaluated:
        classes = class_names(config.task.name, run / "tokenizer")
        result, _ = evaluate_labelled(model, opened(), classes, config.eval.batch, dist.device())
        kinds = {f"eval/{kind}": found["score"] for kind, found in result["by_kind"].items()}
        shares = {f"eval/{name}": result[name] for name in ("accuracy", "consistency") if name in result}
        return Evaluated(shares | kinds)

    return measure


def flat_metrics(result: dict[str, Any]) -> dict[str, float]:
    """The recalls of `evaluate_retrieval` by name, as `evaluator` gives them."""
    metrics: dict[str, float] = {}
    for direction in DIRECTIONS:
        for kind, name in (("itc", direction), ("reranked", f"{direction}_reranked")):
            numbers = result[direction][kind]
            metrics |= {f"eval/{name}_r{k}": numbers[f"r{k}"] for k in RECALLS} if numbers else {}
    means = result["mean_recall"]
    return metrics | {"eval/mean_recall": means["itc"] if means["reranked"] is None else means["reranked"]}


class Pace:
    """How long evaluations take beside the training between them; entered around each.

    Args:
        share: an evaluation's part of the training since the one before, at most.
    """

    def __init__(self, share: float) -> None:
        self.share, self.seconds, self._ended = share, 0.0, 0.0

    def too_soon(self) -> bool:
        """Whether an evaluation like the last would stop training for long; the same on all ranks."""
        trained = time.monotonic() - self._ended
        late = self.seconds > max(LONG_SECONDS, self.share * trained)
        return bool(dist.all_reduce(torch.tensor(float(late)), "max"))

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._ended = time.monotonic()
        self.seconds = self._ended - self._began
