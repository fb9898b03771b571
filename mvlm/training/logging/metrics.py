"""What a run reports about its steps, and the numbers of a log line."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mvlm.batch import Batch, LabelledBatch, Losses, MetricAccumulator
from mvlm.checkpoint.fencing import FencingToken
from mvlm.checkpoint.state import TrainState
from mvlm.config.schema import Optim, Train
from mvlm.runtime import dist, replicas
from mvlm.runtime.wording import counted
from mvlm.training.engine import Engine
from mvlm.training.health.matching import MatchingWatch
from mvlm.training.logging.mfu import Arithmetic
from mvlm.training.logging.monitor import Monitor
from mvlm.training.logging.profile import Profiling
from mvlm.training.stream import TrainingStream


class Reporter:
    """Times the steps of an attempt and reports on them: the progress at each, all numbers at log steps.

    Args:
        run: gets the traces that are asked for.

    Attributes:
        longest_step: seconds, data included.
        waited: seconds spent so far in waiting for other ranks between steps; the trainer adds to it.
    """

    def __init__(
        self,
        run: Path,
        monitor: Monitor,
        attempt: FencingToken,
        engine: Engine,
        stream: TrainingStream,
        optim: Optim,
        arithmetic: Arithmetic,
    ) -> None:
        self.monitor, self._attempt, self._profiling = monitor, attempt, Profiling(run)
        self._engine, self._stream, self._optim, self._arithmetic = engine, stream, optim, arithmetic
        self._matching = MatchingWatch()
        self.longest_step = 0.0
        self.waited = 0.0

    def close(self) -> None:
        self._profiling.close()

    def restart(self, step: int) -> None:
        """Count from here, with a new loader."""
        self._since, self._clock = step, time.perf_counter()
        self._waited, self._data_waited = self.waited, 0.0

    def leave_out(self, seconds: float) -> None:
        """Do not count the last `seconds` as training."""
        self._clock += seconds

    def stepped(self, step: int, seconds: float) -> None:
        self.longest_step = max(self.longest_step, seconds)
        self.monitor.advance(step)
        self._profiling.stepped(step)

    def report(
        self,
        losses: Losses,
        accumulated: MetricAccumulator,
        state: TrainState,
        factor: float,
        micro_batches: Sequence[Batch | LabelledBatch],
    ) -> None:
        """Log the step just made; all ranks must call, and wait for the device.

        Args:
            factor: share of the peak learning rates.
            micro_batches: this rank's; only their shapes are read.
        """
        engine, stream, optim = self._engine, self._stream, self._optim
        means = (dist.all_reduce(torch.stack(list(losses.values()))) / dist.world()).tolist()
        parts = dict(zip(losses, means, strict=True))
        metrics: dict[str, Any] = {"step": state.step, "loss": engine.objectives.total(parts)} | parts
        metrics |= reported(accumulated)
        metrics["lr"], metrics["encoder_lr"] = optim.lr * factor, optim.encoder_lr * factor
        metrics["grad_norm"] = None if engine.grad_norm is None else float(engine.grad_norm)
        if (scale := engine.loss_scale_state()) is not None:
            metrics["loss_scale"], metrics["overflows"] = scale["cur_scale"], state.step - engine.updates
        if engine.device.type == "cuda":
            metrics["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        else:
            metrics["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        metrics |= self._timing(state.step) | {"epoch": stream.epochs(state.samples_seen)}
        if dist.rank() == 0:  # only it writes the line, and counting the operations of a new length holds up all ranks
            metrics |= self._arithmetic.metrics(micro_batches, metrics["pairs_per_s"])
        metrics |= {"bad_images": len(stream.quarantine), "skipped": len(stream.skipped.positions)}
        self.log(metrics)
        hard = "itm" in parts and engine.objectives.itm_negatives == "hard"
        if hard and (sentence := self._matching.judge(state.step, parts["itm"])):
            self.monitor.say(sentence)
        self._profiling.look()

    def log(self, metrics: dict[str, Any]) -> None:
        if self._attempt.superseded():  # a machine suspended since the ranks agreed may have been given up
            return
        if not self.monitor.has_file() and not self._attempt.is_lost():  # somebody has edited or deleted it
            self.monitor.reopen()
        self.monitor.log(metrics)

    def _timing(self, step: int) -> dict[str, float]:
        seconds, steps = time.perf_counter() - self._clock, step - self._since
        data_waited = self._stream.loader.wait_seconds
        data = data_waited - self._data_waited
        timing = {
            "pairs_per_s": steps * self._stream.global_batch / seconds,
            "data_wait": data / seconds,
            **spread(seconds / steps, data / steps, (self.waited - self._waited) / steps),
        }
        self.restart(step)
        self._data_waited = data_waited
        return timing


def spread(step_s: float, data_wait_s: float, others_wait_s: float) -> dict[str, float | int]:
    """How far the ranks' times are apart, and which is slow; all ranks must call. The exchange uses host memory.

    Args:
        step_s, data_wait_s, others_wait_s: this rank's mean seconds a step: in all, waiting for data, and waiting
            for the other ranks where they meet.

    Returns:
        The same flat metrics on every rank. `slowest_rank` is the one that waits least for the others, since a
        step takes all of them equally long.
    """
    rows_R3 = dist.all_gather(torch.tensor([[step_s, data_wait_s, others_wait_s]], dtype=torch.float64)).tolist()
    step, data_wait, others_wait = ([row[column] for row in rows_R3] for column in range(3))
    metrics: dict[str, float | int] = {}
    for name, values in (("step_s", step), ("data_wait_s", data_wait)):
        metrics[f"{name}_min"] = min(values)
        metrics[f"{name}_median"] = statistics.median(values)
        metrics[f"{name}_max"] = max(values)
    return metrics | {"slowest_rank": others_wait.index(min(others_wait))}


def reported(accumulated: MetricAccumulator) -> dict[str, float | None]:
    """The global batch's accuracies, None for one that had no examples, and the other values.

    All ranks must call, and wait for the device.
    """
    right, values = list(accumulated.correct), list(accumulated.values)
    metrics: dict[str, float | None] = {}
    if right:
        counts_2X = torch.stack([*accumulated.correct.values(), *accumulated.total.values()]).view(2, -1)
        sums_2X = dist.all_reduce(counts_2X.cpu().double())
        metrics |= {name: r / a if a else None for name, r, a in zip(right, *sums_2X.tolist(), strict=True)}
    if values:
        metrics |= dict(zip(values, torch.stack(list(accumulated.values.values())).tolist(), strict=True))
    return metrics


def _ranks() -> str:
    size, world = replicas.size(), dist.world()
    return counted(world, "rank") if size == 1 else f"{world} ranks, {size} of them a replica,"


def opening(run: str, train: Train, resumed: Path | None, layout: dict[str, Any]) -> str:
    """The first sentence of a run."""
    start = f"Resuming {resumed.name}" if resumed else "Starting"
    averaged = f"; evaluated by averaged weights, train.ema = {train.ema}" if train.ema else ""
    return (
        f"{start}: {layout['parameters'] / 1e6:.1f} M parameters, {counted(layout['rows'], 'image')}, "
        f"{counted(layout['steps'], 'step')} of {train.global_batch} pairs = {_ranks()} x "
        f"{layout['accumulation']} x {layout['micro_batch']}, ZeRO {layout['zero_stage']}, {dist.device()}; "
        f"everything goes to {run}{averaged}"
    )
