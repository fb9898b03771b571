"""One attempt at a run: updates, and between them what all ranks have to agree on."""

from __future__ import annotations

import dataclasses
import time

from mvlm.batch import MetricAccumulator
from mvlm.checkpoint.newest import newest_whole
from mvlm.checkpoint.state import TrainState
from mvlm.errors import ExitCode, MemoryCorrupted, first_line
from mvlm.runtime import dist
from mvlm.training.agreement import Agreement, StepFlags
from mvlm.training.checkpoint.resume import restore
from mvlm.training.checkpoint.save import Saver
from mvlm.training.engine import Engine
from mvlm.training.health.anomaly import Anomaly, AnomalyDetector
from mvlm.training.health.signals import StopRequests
from mvlm.training.health.watchdog import Watchdog
from mvlm.training.logging.metrics import Reporter
from mvlm.training.schedule import Schedule
from mvlm.training.stream import TrainingStream
from mvlm.training.validation import Validation

LONG = 12.0  # times the watchdog's patience, for what may take long: evaluation, rolling back, files


@dataclasses.dataclass
class Health:
    """What may end or disturb an attempt: requests to stop, hangs, anomalies."""

    stop: StopRequests
    watchdog: Watchdog
    detector: AnomalyDetector


@dataclasses.dataclass
class Trainer:
    """An attempt and its parts.

    Attributes:
        state: where the run stands.
        has_checkpoint: the run folder has the checkpoint that training begins with.
    """

    state: TrainState
    schedule: Schedule
    engine: Engine
    stream: TrainingStream
    saver: Saver
    reporter: Reporter
    health: Health
    validation: Validation
    has_checkpoint: bool

    def __post_init__(self) -> None:
        self._first = self.state
        self._begun: Agreement | None = None  # with the ranks' flags from before the last step
        self._start_from(self.state)

    def _start_from(self, state: TrainState) -> None:
        self.state, self._saved_step = state, state.step
        self.health.detector.restart(state.recent_losses)
        self.reporter.restart(state.step)

    def run(self) -> int:
        """Train until the last step or until asked to stop, and return the exit code."""
        if not self.has_checkpoint:  # also, a disk without room for one should fail now and not in an hour
            self._save()
            self.saver.finish()
        elif self.state.unevaluated:
            self._evaluate()
            if not self.validation.lost:
                self._save()
            self._first = self.state  # what its first steps may go back to
        while not self.is_over and not self.validation.must_end(self.state):
            began = time.perf_counter()
            flags, anomaly = self._sync()
            if self.saver.pending and flags.written == dist.world():
                self.saver.publish()
            if self.saver.uploads.pending and flags.uploaded == dist.world():
                self.saver.uploads.advance()
            if flags.faults:
                self.stream.list_faults(self.state.samples_seen)
            if anomaly:
                self._roll_back(anomaly)
            elif flags.without_data or self.stream.lost:
                return self._stop_without_data()  # first, since a stop for another reason would hide its exit code
            elif flags.reason_to_stop:
                return self._stop(flags.reason_to_stop)
            elif flags.ready == dist.world():
                self._step(began)
        return self._finish()

    @property
    def is_over(self) -> bool:
        """Whether the last step has been made."""
        return self.state.step >= self.schedule.steps

    def _step(self, began: float) -> None:
        """Make the next update, whose data were first asked for at `began`, by `time.perf_counter`."""
        micro_batches = next(self.stream.loader)
        schedule, before = self.schedule, self.state.step
        step = before + 1
        saves = schedule.is_due(schedule.save_every, step) or schedule.is_due(schedule.keep_every, step)
        evaluates = self.validation.evaluate is not None and schedule.is_due(schedule.eval_every, step)
        if not saves and not evaluates:  # both take long, and flags sent now would be out of date
            self._begun = self._begin_sync(ready=self.stream.is_here())
        self._mark("computing the update")
        factor = schedule.learning_rate(before)
        metrics = MetricAccumulator() if schedule.is_due(schedule.log_every, step) else None
        losses = self.engine.step(micro_batches, factor, before, metrics)
        engine, position = self.engine, self.stream.loader.position
        total = engine.objectives.total(losses)
        miscomputed = engine.audit.miscomputed(before) if engine.audit else None
        faults = engine.overflowed, engine.corrupted, miscomputed
        self.health.detector.watch(step, position, total, engine.grad_norm, *faults)
        seen = position + self.stream.global_batch
        self.state = dataclasses.replace(self.state, step=step, samples_seen=seen, unevaluated=False)
        self.reporter.stepped(step, time.perf_counter() - began)
        if metrics:
            self.reporter.report(losses, metrics, self.state, factor, micro_batches)
        aside = time.perf_counter()
        if (saves or evaluates) and (anomaly := self._drain()):
            self._roll_back(anomaly)
            return
        if evaluates:
            self._evaluate()
        if saves or self.state.is_best or self.validation.must_end(self.state):
            self._save()  # after the evaluation, whose outcome is part of the state
        self.reporter.leave_out(time.perf_counter() - aside)  # neither counts as training

    def _sync(self) -> tuple[StepFlags, Anomaly | None]:
        """Exchange the ranks' flags: those from before the last step, or, if none were sent then, those of now.

        Returns:
            The sums of all ranks' flags, the same on all, and an earlier step if it turned out bad.

        Raises:
            UserError: a later attempt at this run has begun, or its folder has gone; nothing has been written since.
        """
        if not self._begun:
            self._mark("waiting for data")
            self._begun = self._begin_sync(ready=self.stream.wait(lambda: any(self._reasons_to_stop().values())))
        return self._end_sync()

    def _begin_sync(self, ready: bool, drain: bool = False) -> Agreement:
        """Begin our only exchange of a step, which also judges an earlier step.

        Args:
            ready: the next step's data are there.
            drain: judge a step without waiting for later ones.
        """
        detector, saver = self.health.detector, self.saver
        own = StepFlags(
            **self._reasons_to_stop(),
            superseded=saver.attempt.superseded(),
            gone=saver.attempt.is_gone(),
            written=saver.pending and saver.written,
            uploaded=saver.uploads.pending and saver.uploads.ready,
            faults=len(self.stream.loader.faults),
            ready=ready,
            without_data=bool(self.stream.lost),
        )
        return Agreement(own, detector.report() if detector.due(drain) else None)

    def _reasons_to_stop(self) -> dict[str, bool]:
        """Whether this rank has each of them, by the flag's name."""
        stop, saver = self.health.stop, self.saver
        save_seconds = saver.seconds + saver.uploads.seconds
        evaluation_seconds = self.validation.coming_seconds(self.schedule, self.state.step)
        is_up = stop.time_is_up(self.reporter.longest_step, save_seconds, evaluation_seconds)
        return {"signalled": stop.signalled, "orphaned": stop.orphaned(), "time_is_up": is_up}

    def _end_sync(self) -> tuple[StepFlags, Anomaly | None]:
        """End the exchange that has begun."""
        assert self._begun
        self._mark("agreeing with the other ranks")
        agreement, self._begun, began = self._begun, None, time.perf_counter()
        flags, reading = agreement.wait()
        self.reporter.waited += time.perf_counter() - began
        anomaly = self.health.detector.judge(*reading) if agreement.judges else None
        if flags.gone:
            raise self.saver.attempt.lost()
        if flags.superseded:
            raise self.saver.attempt.overtaken(self.state.step)
        return flags, anomaly

    def _drain(self) -> Anomaly | None:
        """Judge all steps made so far; returns the first bad one."""
        while self.health.detector.due(drain=True):
            self._begun = self._begin_sync(ready=False, drain=True)
            if anomaly := self._end_sync()[1]:
                return anomaly
        return None

    def _save(self) -> None:
        """Begin a checkpoint of the present state, all of whose steps have been judged.

        Raises:
            MemoryCorrupted: its bits are not those of the last update.
        """
        self._mark("taking a checkpoint", LONG)
        self.saver.finish()  # the one before, which is whole whatever is found now
        if not self.engine.is_intact():
            raise MemoryCorrupted(
                f"Weights or moments have changed in memory since the update of step {self.state.step}: they are "
                "not saved, and the same command resumes from the last checkpoint."
            )
        self.state = dataclasses.replace(
            self.state,
            updates=self.engine.updates,
            skipped=self.stream.skipped.positions_before(self.state.samples_seen),
            recent_losses=self.health.detector.recent_losses,
            loss_scale=self.engine.loss_scale_state(),
            order=self.stream.order,
        )
        self.saver.start(self.state)
        self._saved_step = self.state.step

    def _evaluate(self) -> None:
        self._mark("evaluating", LONG)
        step = self.state.step
        metrics, picture = self.validation.measure(self.engine, self.saver.run, step, self.is_over)
        self.state = dataclasses.replace(self.state, unevaluated=bool(self.validation.lost))
        if self.validation.lost or not self.validation.evaluate:
            return
        self.reporter.log({"step": step} | metrics)
        if selector := self.validation.selector:
            best = selector.judge(self.state.best, step, metrics)
            self.state = dataclasses.replace(self.state, best=dist.broadcast_object(best))
        if picture:
            self.reporter.monitor.picture(step, picture)

    def _roll_back(self, anomaly: Anomaly) -> None:
        """Restore the newest checkpoint and leave the bad batch out from then on, if it is to blame.

        Raises:
            UserError: too many batches have been left out.
            MemoryCorrupted: memory has changed too often.
        """
        self._mark("going back to a checkpoint", LONG)
        self.saver.finish()
        if self.saver.copies:
            self.saver.copies.drain()
        self._set_aside(anomaly)
        self.saver.uploads.complete_folder()
        checkpoint = newest_whole(self.saver.run)
        self.stream.close()
        state = restore(self.engine, checkpoint, begins_stage=bool(self._first.stages))
        if state.step == self._first.step:  # the saved losses may no longer be a measure, and the stage may differ
            state = self._first
        state = self.saver.settle_best(state) if self.validation.selector else dataclasses.replace(state, best=None)
        self.stream.restart(state)
        self._start_from(state)
        file = self.stream.skipped.path
        apart = f", without that batch (its samples are listed in {file})" if anomaly.is_of_data else ""
        self.reporter.monitor.say(f"At step {anomaly.step} {anomaly.reason}: back to {checkpoint.name}{apart}.")

    def _set_aside(self, anomaly: Anomaly) -> None:
        """Have a batch left out, unless memory is to blame."""
        if anomaly.is_of_data:
            self.stream.skip(anomaly)
        else:
            self.health.detector.count_corruption(anomaly)

    def _stop_without_data(self) -> int:
        lost = self.validation.lost
        why, code = (first_line(lost), ExitCode(lost.exit_code)) if lost else self.stream.why_lost()
        self._stop(f"{'before an evaluation' if lost else 'for lack of data'} ({why})", code)
        if code == ExitCode.MISTAKE and (mistake := lost or self.stream.lost):
            raise mistake
        return code

    def _stop(self, reason: str, code: ExitCode = ExitCode.REQUEUE) -> int:
        asked = time.perf_counter()
        if anomaly := self._drain():
            self._set_aside(anomaly)  # what was saved before it stays the latest
        elif self._saved_step != self.state.step:
            self._save()
        self._await_files()
        self.saver.uploads.drain()
        self.reporter.monitor.say(
            f"Stopped {reason} at step {self.state.step}, saved in {time.perf_counter() - asked:.1f} s; "
            "the same command resumes from there."
        )
        return self._leave(code)

    def _finish(self) -> int:
        self.stream.list_faults(self.state.samples_seen)
        if self.stream.lost or self.validation.lost:
            return self._stop_without_data()
        self._await_files()
        self.saver.uploads.finish()
        self.saver.require_own_folder(self.state.step)
        is_whole = self.is_over and self.schedule.is_last
        if (reason := self.validation.why_over(self.state)) and not is_whole:
            self.reporter.monitor.say(f"Ended early at step {self.state.step}: {reason} (eval.patience).")
        return self._leave(ExitCode.DONE)

    def _await_files(self) -> None:
        self._mark("waiting for the checkpoint's files", LONG)
        self.saver.finish()
        if self.saver.copies:
            self.saver.copies.drain()
        self._mark("waiting for the mirror", LONG)

    def _leave(self, code: int) -> int:
        self._mark("waiting for the trackers")
        is_end = self.schedule.is_last or bool(self.validation.why_over(self.state))
        self.reporter.monitor.finish(done=code == ExitCode.DONE and is_end)
        if self.saver.copies and code == ExitCode.DONE:
            self.saver.copies.remove()
        dist.barrier()  # no rank leaves before all have saved: a launcher ends the others at the first exit
        return code

    def _mark(self, doing: str, patience: float = 1.0) -> None:
        self.health.watchdog.at(self.state.step, doing, patience)
