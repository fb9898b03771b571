"""What a log line holds."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import torch

from mvlm.batch import Losses, MetricAccumulator
from mvlm.checkpoint.state import TrainState
from mvlm.config.schema import Config
from mvlm.runtime import dist
from mvlm.training.engine import Engine
from mvlm.training.health.stragglers import spread


class Meter:
    """Times steps between log lines.

    Attributes:
        longest_step: seconds, data included.
        waited: seconds spent so far in waiting for other ranks between steps; the trainer adds to it.
    """

    def __init__(self, config: Config, engine: Engine) -> None:
        self.config, self.engine = config, engine
        self.longest_step = 0.0
        self.waited = 0.0
        self.restart(0)

    def restart(self, step: int) -> None:
        """Count from here, with a new loader."""
        self._since, self._clock = step, time.perf_counter()
        self._waited, self._data_waited = self.waited, 0.0

    def stepped(self, seconds: float) -> None:
        self.longest_step = max(self.longest_step, seconds)

    def leave_out(self, seconds: float) -> None:
        """Have what took that long just now not count as training."""
        self._clock += seconds

    def metrics(
        self, losses: Losses, tally: MetricAccumulator, state: TrainState, factor: float, data_waited: float, rows: int
    ) -> dict[str, Any]:
        """The global batch's losses and what else there is to tell; all ranks must call, and wait for the device.

        Args:
            tally: of the same step.
            factor: of the peak learning rates.
            data_waited: seconds the loader has waited since it was opened.
            rows: of the data, which make an epoch.
        """
        means = (dist.all_reduce(torch.stack(list(losses.values()))) / dist.world()).tolist()
        parts = dict(zip(losses, means, strict=True))
        loss = sum(self.config.objectives.weight(name) * value for name, value in parts.items())
        metrics: dict[str, Any] = {"step": state.step, "loss": loss} | parts
        metrics |= told(tally)
        optim = self.config.optim
        metrics["lr"], metrics["encoder_lr"] = optim.lr * factor, optim.encoder_lr * factor
        metrics["grad_norm"] = None if self.engine.grad_norm is None else float(self.engine.grad_norm)
        if (scale := self.engine.loss_scale_state()) is not None:
            metrics["loss_scale"], metrics["overflows"] = scale["cur_scale"], state.step - self.engine.updates
        if self.engine.device.type == "cuda":
            metrics["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        else:
            metrics["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        return metrics | self._timing(state, data_waited) | {"epoch": state.samples_seen / rows}

    def _timing(self, state: TrainState, data_waited: float) -> dict[str, float]:
        seconds, steps = time.perf_counter() - self._clock, state.step - self._since
        data = data_waited - self._data_waited
        timing = {
            "pairs_per_s": steps * self.config.train.global_batch / seconds,
            "data_wait": data / seconds,
            **spread(seconds / steps, data / steps, (self.waited - self._waited) / steps),
        }
        self.restart(state.step)
        self._data_waited = data_waited
        return timing


def told(tally: MetricAccumulator) -> dict[str, float | None]:
    """The global batch's accuracies, of which one that nothing was asked for is None, and the other values.

    All ranks must call, and wait for the device.
    """
    right, values = list(tally.correct), list(tally.values)
    metrics: dict[str, float | None] = {}
    if right:
        counts_2X = torch.stack([*tally.correct.values(), *tally.total.values()]).view(2, -1)
        sums_2X = dist.all_reduce(counts_2X.cpu().double())
        metrics |= {name: r / a if a else None for name, r, a in zip(right, *sums_2X.tolist(), strict=True)}
    if values:
        metrics |= dict(zip(values, torch.stack(list(tally.values.values())).tolist(), strict=True))
    return metrics


def opening(config: Config, state: TrainState, resumed: Path | None, layout: dict[str, Any]) -> str:
    """The first sentence of a run."""
    start = f"Going on from {resumed.name}" if resumed else "Starting"
    averaged = f"; evaluated by averaged weights, train.ema = {config.train.ema}" if config.train.ema else ""
    return (
        f"{start}: {layout['parameters'] / 1e6:.1f} M parameters, {layout['rows']:,} images, "
        f"{layout['steps']:,} steps of {config.train.global_batch} pairs = {dist.world()} ranks x "
        f"{layout['accumulation']} x {layout['micro_batch']}, ZeRO {layout['zero_stage']}, {dist.device()}; "
        f"everything goes to {config.run.dir}{averaged}"
    )
