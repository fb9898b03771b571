"""Evaluation on held-out data while a run trains: retrieval, foils and classification, or the task it is tuned for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mvlm.checkpoint.description import TOKENIZER
from mvlm.config.schema import Data, Eval, Objectives, Task
from mvlm.data.samples.evaluation import EvalDataset, LabelledEvalDataset
from mvlm.data.samples.foils import FoilDataset
from mvlm.data.samples.labelled import class_names
from mvlm.data.samples.pictures import ClassFolder, Pictures
from mvlm.data.samples.standing_in import StandIns
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.data.shards.mixture import Mixture, held_out
from mvlm.errors import HeldOutLost, UserError
from mvlm.evaluate.classification import SHARES, TEMPLATES, evaluate_classification, sentences_of
from mvlm.evaluate.foils import evaluate_foils
from mvlm.evaluate.labelled import evaluate_labelled, kind_of
from mvlm.evaluate.pictures import is_due, write_pictures
from mvlm.evaluate.ranking import RECALLS
from mvlm.evaluate.retrieval import DIRECTIONS, SearchSettings, evaluate_retrieval
from mvlm.model.finetune import TaskModel
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import dist

LONG_SECONDS = 30.0
"""A shorter evaluation is never put off."""

MOST_PATIENCE = 15.0
"""The most minutes to wait for a store: the other ranks wait within a collective, which times out after 30."""


class Evaluated(NamedTuple):
    """Flat metrics, and the path of a picture for people to look at, if there is one."""

    metrics: dict[str, float]
    picture: Path | None = None


@dataclass
class Evaluator:
    """What the training loop calls on every rank with (model, run folder, step, whether it is the last).

    The metrics are `eval/<direction>_<r1|r5|r10>` after ITC and `eval/<direction>_reranked_<...>` after ITM, and
    `eval/mean_recall`, of the re-ranked ones if there are any; for a task that chooses among classes `eval/accuracy`,
    NLVR2's `eval/consistency`, and `eval/<kind of row>`. `eval.foils` adds `eval/foils_<itc|itm>`, and the same for
    each kind, `eval.classes` adds `eval/classification_<top1|top5|mean_per_class>`. If the last evaluation took over
    half a minute and more than `eval.share` of the time trained since, this one is put off to the next turn, and its
    only metric is `eval/put_off`, the seconds that the last one took. What is measured is always the same, so that the
    numbers of a run can be compared.

    Args:
        data: names held-out shards.
        pictures: how many are reconstructed for people to look at.

    Raises:
        UserError: at once, if the data cannot be opened, or `eval.select` names what is not measured.
        HeldOutLost: when called, on every rank alike: one cannot read its share, or `eval.memory_gb` is too little.
    """

    data: Data
    task: Task
    objectives: Objectives
    image_size: int
    settings: Eval
    pictures: int

    def __post_init__(self) -> None:
        self._mixture = held_out(self.data, self.task.corpus, min(self.data.patience, MOST_PATIENCE))
        self._pace, self._stand_ins = Pace(self.settings.share), StandIns()
        self._dataset: Any = None
        self._foils: FoilDataset | None = None
        cache, foils = self._mixture.cache, self.settings.foils
        self._foil_shards = Mixture(foils, cache=cache, task="foils") if foils else None
        self._classes = ClassFolder(self.settings.classes, self.settings.limit) if self.settings.classes else None
        self._pictures: Pictures | None = None
        if self.settings.select:
            self._check_select()

    def _check_select(self) -> None:
        select = self.settings.select
        names = self._task_metric_names() if self.task.is_labelled else self._retrieval_metric_names()
        if not names:
            raise UserError(
                f"eval.select is {select!r}, and no question of {', '.join(self.data.eval)} has answers to measure it "
                "by: leave eval.select empty, or evaluate on questions with answers."
            )
        if select not in names:
            raise UserError(f"eval.select is {select!r}, which is not among {', '.join(names)}: name one.")

    def _task_metric_names(self) -> list[str]:
        """The metrics of a task that chooses, with one for each kind of row; none if no row has an answer."""
        names = ["eval/accuracy", *(["eval/consistency"] if self.task.name == "nlvr2" else [])]
        rows = range(min(self.settings.limit or len(self._mixture), len(self._mixture)))
        scored = (row.own for row in self._mixture.sound(rows) if row.own.get("answers", True))
        kinds = (f"eval/{kind_of(self.task.name, own)}" for own in scored)
        if (first := next(kinds, None)) is None:
            return []
        return names if self.settings.select in names else [*names, *sorted({first, *kinds})]

    def _retrieval_metric_names(self) -> list[str]:
        kinds = ("", "_reranked") if self.settings.rerank and self.objectives.itm else ("",)
        names = ["eval/mean_recall"]
        names += [f"eval/{direction}{kind}_r{k}" for direction in DIRECTIONS for kind in kinds for k in RECALLS]
        names += [f"eval/classification_{share}" for share in SHARES] if self._classes else []
        return names if self.settings.select in names else names + self._foil_metric_names()

    def _foil_metric_names(self) -> list[str]:
        if self._foil_shards is None:
            return []
        rows = range(min(self.settings.limit or len(self._foil_shards), len(self._foil_shards)))
        swapped = sorted({row.own["swapped"] for row in self._foil_shards.sound(rows)})
        scorers = ("itc", "itm") if self.objectives.itm else ("itc",)
        return [f"eval/foils_{scorer}{kind}" for scorer in scorers for kind in ("", *(f"_{each}" for each in swapped))]

    def __call__(self, model: Any, run: Path, step: int, last: bool) -> Evaluated:
        if not last and self._pace.too_soon():
            return Evaluated({"eval/put_off": self._pace.seconds})
        with self._pace:
            _try_on_all(lambda: self._open(run))
            metrics = self._task_metrics(model, run) if self.task.is_labelled else self._retrieval_metrics(model)
            _try_on_all(self._stand_ins.settle)  # before stand-ins would be drawn as pictures
            draws = self.pictures and not self.task.is_labelled and (last or is_due(step // self.settings.every))
            drawn = model, self._dataset, self.pictures, run, step, dist.device()
            picture = write_pictures(*drawn) if draws else None
            _try_on_all(self._stand_ins.settle)
        return Evaluated(metrics, picture)

    def _open(self, run: Path) -> None:
        """Open the evaluation data, the first time: the run's tokenizer is not there before training begins."""
        if self._dataset:
            return
        length, size, limit = self.data.text_length, self.image_size, self.settings.limit
        tokenizer, classes = load_tokenizer(str(run / TOKENIZER)), self._classes
        if self.task.is_labelled:
            dataset: Any = LabelledEvalDataset(self._mixture, self.task.name, tokenizer, length, size, limit)
        else:
            dataset = EvalDataset(self._mixture, tokenizer, length, size, limit)
            if self._foil_shards:
                self._foils = FoilDataset(self._foil_shards, tokenizer, length, size, limit)
                self._foils.stand_ins = self._stand_ins
            if classes:
                self._pictures = Pictures(classes.paths, sentences_of(classes, TEMPLATES), tokenizer, length, size)
                self._pictures.stand_ins = self._stand_ins
        dataset.stand_ins = self._stand_ins
        self._dataset = dataset

    def _retrieval_metrics(self, model: MaskVLM) -> dict[str, float]:
        search = SearchSettings.of(self.settings)
        for data in filter(None, (self._dataset, self._foils, self._pictures)):
            _try_on_all(partial(search.sizes, model, data))  # while all ranks can still fail together
        metrics = flat_metrics(evaluate_retrieval(model, self._dataset, search, dist.device()))
        return metrics | self._foil_metrics(model, search) | self._classification_metrics(model, search)

    def _foil_metrics(self, model: MaskVLM, search: SearchSettings) -> dict[str, float]:
        if self._foils is None:
            return {}
        right = evaluate_foils(model, self._foils, search, dist.device())["accuracy"]
        return {
            f"eval/foils_{scorer}{'' if kind == 'all' else f'_{kind}'}": share
            for scorer, shares in right.items()
            for kind, share in shares.items()
        }

    def _classification_metrics(self, model: MaskVLM, search: SearchSettings) -> dict[str, float]:
        folder = self._classes
        if folder is None or self._pictures is None:
            return {}
        known = folder.label_N, len(folder.names), search, dist.device()
        result = evaluate_classification(model, self._pictures, *known)
        return {f"eval/classification_{share}": result[share] for share in SHARES}

    def _task_metrics(self, model: TaskModel, run: Path) -> dict[str, float]:
        name = self.task.name
        classes = class_names(name, run / TOKENIZER)
        result, _ = evaluate_labelled(model, self._dataset, classes, self.settings.batch, dist.device())
        kinds = {f"eval/{kind}": found["score"] for kind, found in result["by_kind"].items()}
        shares = {f"eval/{name}": result[name] for name in ("accuracy", "consistency") if name in result}
        return shares | kinds


def _try_on_all(act: Callable[[], object]) -> None:
    try:
        dist.try_on_all(act)
    except UserError as error:
        raise HeldOutLost.of(error) from error


def flat_metrics(result: dict[str, Any]) -> dict[str, float]:
    """The recalls of `evaluate_retrieval` by name, as `Evaluator` gives them."""
    metrics: dict[str, float] = {}
    for direction in DIRECTIONS:
        for kind, name in (("itc", direction), ("reranked", f"{direction}_reranked")):
            numbers = result[direction][kind]
            metrics |= {f"eval/{name}_r{k}": numbers[f"r{k}"] for k in RECALLS} if numbers else {}
    means = result["mean_recall"]
    return metrics | {"eval/mean_recall": means["itc"] if means["reranked"] is None else means["reranked"]}


class Pace:
    """How long evaluations take compared with the training between them; entered around each.

    Args:
        share: the most that an evaluation may take, as a share of the training time since the last one.
    """

    def __init__(self, share: float) -> None:
        self.share, self.seconds, self._ended = share, 0.0, 0.0

    def too_soon(self) -> bool:
        """Whether an evaluation like the last would stop training for long; the same on all ranks."""
        trained = time.monotonic() - self._ended
        return not dist.all_agree(self.seconds <= max(LONG_SECONDS, self.share * trained))

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._ended = time.monotonic()
        self.seconds = self._ended - self._began
