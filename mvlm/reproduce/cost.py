"""What training runs cost, by `mvlm plan`; for tasks that it cannot plan, by their FLOPs alone."""

from __future__ import annotations

from typing import Any

from mvlm.config.schema import Blueprint, Data, Optim, Train
from mvlm.estimate.cards import find_card
from mvlm.estimate.count import FakeModel, task_flops
from mvlm.estimate.encoders import build_task_without_weights, build_without_weights
from mvlm.estimate.plan import Planner, Request, precision_of
from mvlm.training.schedule import schedule_steps

MFU = 0.4
"""Share of a card's peak that is reached, as in docs/claim.md."""
GPUS = 8
CLASSES = {"vqa": 3129, "nlvr2": 2, "entailment": 3}
"""For VQA, roughly the number of frequent answers; it hardly affects the cost of a step."""


class Prices:
    """GPU-hours of runs on a node of eight cards; runs that differ only in their data are planned once.

    Raises:
        UserError: the card is unknown.
    """

    def __init__(self, gpu: str, deepspeed: str, content: dict[str, Any]) -> None:
        self.gpu, self._card, self._deepspeed, self._content = gpu.lower(), find_card(gpu), deepspeed, content
        self._seconds: dict[str, float] = {}  # of a step

    def gpu_hours(self, blueprint: Blueprint, data: Data, optim: Optim, train: Train, pairs: int) -> float:
        work = repr((blueprint, optim, train))
        if work not in self._seconds:
            self._seconds[work] = self._step_seconds(blueprint, data, optim, train, pairs)
        steps, _ = schedule_steps(train, optim, pairs)
        return steps * self._seconds[work] * GPUS / 3600

    def _step_seconds(self, blueprint: Blueprint, data: Data, optim: Optim, train: Train, pairs: int) -> float:
        if blueprint.task.is_labelled:
            model = build_task_without_weights(blueprint, data, CLASSES[blueprint.task.name])
            flops = train.global_batch * task_flops(model, data.text_length)
            precision = precision_of(self._content, self._deepspeed, self.gpu, self._card)
            return flops / (GPUS * MFU * self._card.peak(precision))
        names = (self._deepspeed, "the recipe")
        request = Request(train, optim, self._content, names, self.gpu, self._card, 1, GPUS, pairs, MFU)
        planner = Planner(request, FakeModel(build_without_weights(blueprint, data), data, optim=optim))
        return planner.step(planner.zero, planner.ranks, planner.pairs, planner.accumulation).seconds
