"""One attempt at a run: updates, and between them what all ranks have to agree on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvlm.batch import Losses, MetricAccumulator
from mvlm.checkpoint.description import SKIPPED
from mvlm.checkpoint.fencing import Attempt
from mvlm.checkpoint.state import TrainState
from mvlm.checkpoint.upload import Uploads
from mvlm.config.schema import Config
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.prefetch import fill_ahead
from mvlm.data.samples.dataset import Rows
from mvlm.errors import DataLost, UserError
from mvlm.runtime import dist
from mvlm.training.checkpoint import resume as checkpoints
from mvlm.training.checkpoint.order import settle_order
from mvlm.training.checkpoint.save import Saver
from mvlm.training.engine import Engine
from mvlm.training.health.anomaly import Bad, Guard
from mvlm.training.health.quarantine import Quarantine
from mvlm.training.health.signals import StopRequests
from mvlm.training.health.skipped import Skipped
from mvlm.training.health.watchdog import Watchdog
from mvlm.training.logging.metrics import Meter
from mvlm.training.logging.mfu import Arithmetic
from mvlm.training.logging.monitor import Monitor
from mvlm.training.logging.profile import Profiling
from mvlm.training.schedule import lr_factor
from mvlm.training.step_flags import StepFlags, sync_ranks

DONE, PREEMPTED = 0, 75
LOOK_S = 1.0  # between two looks of a rank whose data have not come, whether they will
TOLD = 3  # ranks whose words are told when data are lost
LONG = 12.0  # times the watchdog's patience, for what may take long: evaluation, going back, files

Evaluate = Callable[[Any, Path, int, bool], tuple[dict[str, float], Path | None]]
"""(model, run folder, step, whether it is the last) -> flat metrics, and pictures; called on every rank at once."""


@dataclasses.dataclass
class Trainer:
    """Args: layout: has `steps`, the last step, and `micro_batch`. warmup: updates. stop: see `StopRequests`."""

    config: Config
    engine: Engine
    arithmetic: Arithmetic
    dataset: Rows[Any]
    state: TrainState
    layout: dict[str, Any]
    warmup: int
    stop: StopRequests
    attempt: Attempt
    monitor: Monitor
    watchdog: Watchdog
    saver: Saver
    uploads: Uploads
    evaluate: Evaluate | None

    def __post_init__(self) -> None:
        config = self.config
        self.run = Path(config.run.dir)
        self.quarantine = Quarantine(self.run, config.data.tolerance, len(self.dataset.mixture))
        self.skipped = Skipped(self.run, self.state.skipped)
        self.meter = Meter(config, self.engine)
        self.profiling = Profiling(self.run)
        self.first = self.state
        self._start_from(self.state)

    def _start_from(self, state: TrainState) -> None:
        state, change = settle_order(state, self.config.data, len(self.dataset))
        if change:
            self.monitor.say(change)
        self.draws = self.dataset.mixture.sampler(self.config.run.seed, state.order)
        self.state = state
        self.saved_step = state.step
        self._data_lost = ""
        self.guard = Guard(self.config.train.spike, state.recent_losses)
        self.loader: Loader[Any, Any] = Loader(
            self.dataset,
            self.draws,
            global_batch=self.config.train.global_batch,
            micro_batch=self.layout["micro_batch"],
            rank=dist.rank(),
            world=dist.world(),
            start_position=state.samples_seen,
            skip=self.skipped.positions,
            workers=self.config.data.workers,
            worker_mode=self.config.data.worker_mode,
            prefetch=self.config.data.prefetch,
            pin=self.engine.device.type == "cuda",
            ahead=fill_ahead(self.dataset.mixture, self.draws, state.samples_seen),
        )
        self.meter.restart(state.step)

    def close(self) -> None:
        self.profiling.close()
        self.loader.close()

    def to_the_end(self, can_go_back: bool) -> int:
        """Train, and return the exit code.

        Args:
            can_go_back: the run folder has the checkpoint that training begins with.
        """
        if not can_go_back:  # and a disk that cannot hold a checkpoint is better met now than in an hour
            self._save()
            self.saver.finish()
        while self.state.step < self.layout["steps"]:
            began = time.perf_counter()
            is_there = self._wait_for_data()
            said, bad = self._agree(waiting=not is_there)
            if self.saver.pending and said.written == dist.world():
                self.saver.publish()
            if self.uploads.pending and said.uploaded == dist.world():
                self.uploads.advance()
            if said.faults:
                self._list_faults()
            if bad:
                self._go_back(bad)
            elif said.reason_to_stop:
                return self._stop(said.reason_to_stop)
            elif said.without_data:
                return self._stop(f"for want of data ({self._why_without()})")
            elif not said.waiting:
                self._step(began)
        self._list_faults()
        self.watchdog.at(self.state.step, "waiting for the checkpoint's files", LONG)
        self.saver.finish()
        self.watchdog.at(self.state.step, "waiting for the mirror", LONG)
        self.uploads.finish()
        self.saver.require_folder()
        self.watchdog.at(self.state.step, "waiting for the trackers")
        self.monitor.finish(done=True)
        dist.barrier()  # no rank leaves before all have saved: a launcher ends the others at the first exit
        return DONE

    def _wait_for_data(self) -> bool:
        """Whether the next step's data are there, or known to be lost.

        They are waited for, unless their store is gone: that may last, and the ranks must hear of each other meanwhile.
        """
        self.watchdog.at(self.state.step, "waiting for data")
        try:
            while not self.loader.ready(LOOK_S):
                if self.dataset.mixture.cache.outages.reasons:
                    return False
        except DataLost as error:
            self._data_lost = str(error)
        return True

    def _why_without(self) -> str:
        """The words of the ranks that have lost their data; all ranks must call."""
        words = [f"rank {rank}: {lost}" for rank, lost in enumerate(dist.gather_objects(self._data_lost)) if lost]
        return "; ".join(words[:TOLD]) + (f"; and {len(words) - TOLD} more" if len(words) > TOLD else "")

    def _agree(self, drain: bool = False, waiting: bool = False) -> tuple[StepFlags, Bad | None]:
        """One exchange over the host, the only one of a step that is ours; it also judges an earlier step.

        Args:
            drain: judge a step though later ones are still to come.
            waiting: for a store of shards that is gone.

        Returns:
            What all ranks say, alike on all, and the earlier step where it must not have been made.

        Raises:
            UserError: a later attempt at this run has begun, or its folder has gone; nothing has been written since.
        """
        self.watchdog.at(self.state.step, "agreeing with the other ranks")
        judged = self.guard.due(drain)
        loss, grad_norm = self.guard.report() if judged else (0.0, 0.0)
        flags = StepFlags(
            self.stop.signalled,
            self.stop.orphaned(),
            self.stop.time_is_up(self.meter.longest_step, self.saver.seconds + self.uploads.seconds),
            self.attempt.superseded(),
            self.attempt.is_gone(),
            self.saver.pending and self.saver.written,
            self.uploads.pending and self.uploads.ready,
            len(self.loader.faults),
            waiting,
            bool(self._data_lost),
        )
        began = time.perf_counter()
        said, loss, grad_norm = sync_ranks(flags, loss, grad_norm)
        self.meter.waited += time.perf_counter() - began
        bad = self.guard.judge(loss, grad_norm) if judged else None
        if said.gone:
            raise self.attempt.lost()
        if said.superseded:
            raise UserError(
                f"A later attempt at {self.run} has begun, so attempt {self.attempt.number} ends at step "
                f"{self.state.step} without writing more: look at that one, or set another run.dir."
            )
        return said, bad

    def _drain(self) -> Bad | None:
        """Judge all steps made so far; the first that must not have been."""
        while self.guard.due(drain=True):
            if bad := self._agree(drain=True)[1]:
                return bad
        return None

    def _step(self, began: float) -> None:
        """Args: began: when its data were first asked for, by `time.perf_counter`."""
        state, config = self.state, self.config
        micro_batches = next(self.loader)
        self.watchdog.at(state.step, "computing the update")
        factor = lr_factor(state.step, self.warmup, self.layout["steps"], config.optim.floor)
        last = state.step + 1 == self.layout["steps"]
        tally = MetricAccumulator() if last or (state.step + 1) % config.log.every == 0 else None
        losses = self.engine.step(micro_batches, factor, state.step, tally)
        position = self.loader.position
        total = _weighted(losses, config)
        self.guard.watch(state.step + 1, position, total, self.engine.grad_norm, self.engine.overflowed)
        state = dataclasses.replace(state, step=state.step + 1, samples_seen=position + config.train.global_batch)
        self.state = state
        self.meter.stepped(time.perf_counter() - began)
        self.monitor.advance(state.step)
        self.profiling.stepped(state.step)
        if tally:
            metrics = self.meter.metrics(losses, tally, state, factor, self.loader.wait_seconds, len(self.dataset))
            metrics |= self.arithmetic.metrics(micro_batches, metrics["pairs_per_s"])
            left_out = {"bad_images": len(self.quarantine), "skipped": len(self.skipped.positions)}
            self._tell(metrics | left_out)
            self.profiling.look()
        aside = time.perf_counter()
        if last or (config.checkpoint.every and state.step % config.checkpoint.every == 0):
            if bad := self._drain():
                self._go_back(bad)
                return
            self._save()
        if self.evaluate and (last or (config.eval.every and state.step % config.eval.every == 0)):
            self.watchdog.at(state.step, "evaluating", LONG)
            metrics, picture = self._evaluated(self.evaluate)
            self._tell({"step": state.step} | metrics)
            if picture:
                self.monitor.picture(state.step, picture)
        self.meter.leave_out(time.perf_counter() - aside)  # neither is training

    def _tell(self, metrics: dict[str, Any]) -> None:
        if not self.attempt.superseded():  # a machine that stood still since the ranks agreed may have been given up
            self.monitor.log(metrics)

    def _list_faults(self) -> None:
        """Write down the images replaced since the last time; all ranks must call."""
        self.quarantine.add(self.loader.faults, self.state.samples_seen)
        self.loader.faults.clear()

    def _evaluated(self, evaluate: Evaluate) -> tuple[dict[str, float], Path | None]:
        self.engine.engine.eval()
        with torch.no_grad(), self.engine.averaged():
            return evaluate(self.engine.model, self.run, self.state.step, self.state.step == self.layout["steps"])

    def _save(self) -> None:
        """Begin a checkpoint of the state as it is; every step of it has been judged."""
        self.watchdog.at(self.state.step, "taking a checkpoint", LONG)
        self.state = dataclasses.replace(
            self.state,
            updates=self.engine.updates,
            skipped=self.skipped.positions_before(self.state.samples_seen),
            recent_losses=self.guard.recent_losses,
            loss_scale=self.engine.loss_scale_state(),
        )
        self.saver.start(self.state)
        self.saved_step = self.state.step

    def _go_back(self, bad: Bad) -> None:
        """Restore the newest checkpoint and leave the bad batch out from then on.

        Raises:
            UserError: too many batches have been left out.
        """
        self.watchdog.at(self.state.step, "going back to a checkpoint", LONG)
        self.saver.finish()
        self._leave_out(bad)
        self.uploads.complete_folder()
        checkpoint = checkpoints.newest_whole(self.run)
        self.loader.close()
        state = checkpoints.restore(self.engine, checkpoint)
        if state.step == self.first.step:  # its losses may be no measure any more
            state = dataclasses.replace(state, recent_losses=self.first.recent_losses)
        self._start_from(state if state.order else dataclasses.replace(state, order=self.state.order))
        self.monitor.say(
            f"At step {bad.step} {bad.reason}: back to {checkpoint.name}, without that batch "
            f"(its samples stand in {self.run / SKIPPED})."
        )

    def _leave_out(self, bad: Bad) -> None:
        limit = self.config.train.max_skipped
        self.skipped.add(bad, self.config.train.global_batch, self.draws, self.dataset.mixture)
        if len(self.skipped.positions) > limit:
            raise UserError(
                f"At step {bad.step} {bad.reason}, and train.max_skipped = {limit} batches have been left out already: "
                f"look at the samples listed in {self.run / SKIPPED}, or lower optim.lr, or raise train.max_skipped."
            )

    def _stop(self, reason: str) -> int:
        asked = time.perf_counter()
        if bad := self._drain():
            self._leave_out(bad)  # what was saved before it stays the latest
        elif self.saved_step != self.state.step:
            self._save()
        self.watchdog.at(self.state.step, "waiting for the checkpoint's files", LONG)
        self.saver.finish()
        self.watchdog.at(self.state.step, "waiting for the mirror", LONG)
        self.uploads.drain()
        self.monitor.say(
            f"Stopped {reason} at step {self.state.step}, saved in {time.perf_counter() - asked:.1f} s; "
            "the same command goes on from there."
        )
        self.watchdog.at(self.state.step, "waiting for the trackers")
        self.monitor.finish(done=False)
        dist.barrier()  # see to_the_end
        return PREEMPTED


def _weighted(losses: Losses, config: Config) -> Tensor:
    return torch.stack([config.objectives.weight(name) * loss for name, loss in losses.items()]).sum()
