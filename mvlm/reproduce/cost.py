"""What training runs cost, by `mvlm plan`; of tasks that it does not know the operations alone."""

from __future__ import annotations

import dataclasses
from typing import Any

from mvlm.config.schema import Config
from mvlm.estimate.cards import Card, find_card
from mvlm.estimate.count import task_flops
from mvlm.estimate.encoders import build_task_without_weights
from mvlm.estimate.plan import Planner, Request, precision_of
from mvlm.training.schedule import schedule_steps

MFU = 0.4
"""Of a card's peak that is reached, as in docs/claim.md."""
GPUS = 8
CLASSES = {"vqa": 3129, "nlvr2": 2, "entailment": 3}
"""Of VQA about as many as become classes, whose share of a step is none that shows."""


class Prices:
    """GPU-hours of runs on a node of eight cards; runs that differ in their data alone are planned once.

    Raises:
        UserError: the card is not known.
    """

    def __init__(self, gpu: str, deepspeed: str, content: dict[str, Any]) -> None:
        self.gpu, self._card, self._deepspeed, self._content = gpu.lower(), find_card(gpu), deepspeed, content
        self._seconds: dict[str, float] = {}  # of a step

    def gpu_hours(self, config: Config, pairs: int) -> float:
        work = repr((config.model, config.objectives, config.task, config.optim, config.data.text_length, config.train))
        if work not in self._seconds:
            self._seconds[work] = self._step_seconds(config, pairs, self._card)
        steps, _ = schedule_steps(config.train, config.optim, pairs)
        return steps * self._seconds[work] * GPUS / 3600

    def _step_seconds(self, config: Config, pairs: int, card: Card) -> float:
        bare = dataclasses.replace(config, data=dataclasses.replace(config.data, train=()))
        names = (self._deepspeed, "the recipe")
        request = Request(bare, self._content, names, self.gpu, card, 1, GPUS, pairs, MFU)
        if config.task.is_labelled:
            model = build_task_without_weights(config.blueprint, config.data, CLASSES[config.task.name])
            flops = config.train.global_batch * task_flops(model, config.data.text_length)
            return flops / (GPUS * MFU * card.peak(precision_of(request)))
        planner = Planner(request)
        return planner.step(planner.zero, planner.ranks, planner.pairs, planner.accumulation).seconds
