"""How many updates a run makes, at which learning rates, and after which of them it logs, saves and evaluates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from mvlm.checkpoint.state import TrainState
from mvlm.config.schema import Optim, Train
from mvlm.config.validate import LAST_STEP
from mvlm.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """
    Attributes:
        steps: updates in all, or until the stage ends.
        log_every, save_every, keep_every, eval_every: steps; 0 = only after the last.
        is_last: no stage comes after these steps.
    """

    steps: int
    learning_rate: LearningRate
    log_every: int
    save_every: int
    keep_every: int
    eval_every: int
    is_last: bool = True

    def is_due(self, every: int, step: int) -> bool:
        """Whether something that is done every so many steps, and after the last, is due after this step."""
        return step == self.steps or (every > 0 and step % every == 0)


@dataclass(frozen=True)
class LearningRate:
    """The learning rate as a share of its peak: a pure function of the update's number, of which 0 is the first.

    It rises linearly over the first `warmup` updates, the first of which already moves. Then, by `kind`:

    - cosine falls to `floor` at the last update (arXiv 1608.03983, without restarts).
    - constant stays.
    - wsd stays, and over the last `decay` updates falls as 1 - sqrt(progress) towards `floor`, which the update after
      the last would reach (warm-up, stable, decay: MiniCPM, arXiv 2404.06395; this fall: arXiv 2405.18392).
    - inverse_sqrt falls with the square root of the updates made, those of the warm-up included (arXiv 1706.03762).

    Attributes:
        total, warmup: updates; a warm-up may have ended before update 0.
        scale: updates of a whole warm-up.
        began: the update at which the warm-up began, if those before had another global batch; else 0.
        first: the update that counts as 0, if a stage has a schedule of its own.
    """

    kind: Literal["cosine", "constant", "wsd", "inverse_sqrt"]
    total: int
    warmup: int
    scale: float
    decay: int
    floor: float
    began: float = 0.0
    first: int = 0

    def __call__(self, step: int) -> float:
        step -= self.first
        if step < self.warmup:
            return (step + 1 - self.began) / (self.warmup - self.began)
        if self.kind == "cosine":
            progress = min(1.0, (step - self.warmup) / max(1, self.total - 1 - self.warmup))
            return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2
        if self.kind == "wsd":
            begins = max(self.total - self.decay, self.warmup)
            progress = min(1.0, max(0, step - begins) / max(1, self.total - begins))
            return self.floor + (1 - self.floor) * (1 - math.sqrt(progress))
        return 1.0 if self.kind == "constant" else math.sqrt(self.scale / (step - self.warmup + self.scale))


def learning_rate(
    train: Train, optim: Optim, samples: int, steps: tuple[int, int], state: TrainState | None = None
) -> LearningRate:
    """The learning rate for so many samples an epoch, given what `schedule_steps` returns, and the state it takes."""
    total, warmup = steps
    scale = optim.warmup_steps if optim.warmup_steps >= 0 else optim.warmup_epochs * samples / train.global_batch
    began = 0.0
    if state and optim.warmup_steps < 0:
        began = min(float(_offset(train, state)), state.step)  # the offset counts batches left out, whatever their size
    return LearningRate(optim.schedule, total, warmup, max(1.0, scale), optim.fall(total), optim.floor, began)


def schedule_steps(
    train: Train, optim: Optim, samples: int, state: TrainState | None = None, first: int = 0
) -> tuple[int, int]:
    """Updates in all and updates of warm-up, for so many samples an epoch.

    Args:
        state: the one that a run is resumed from. If updates before it had another global batch, epochs and pairs are
            still counted in samples: the learning rate continues from where it was, and its warm-up may have begun
            before update 0.
        first: the run's step that counts as 0, if a stage is counted by itself.

    Raises:
        UserError: there are more than a checkpoint's name has room for, or fewer than have been made.
    """
    # Exactly, and with epochs as they are written: the binary product of 1.1 and 100 exceeds 110, an update more.
    wanted = train.pairs or Fraction(repr(train.epochs)) * samples
    key = "steps" if train.steps else "pairs" if train.pairs else "epochs"
    total = train.steps or math.ceil(Fraction(wanted, train.global_batch) + _offset(train, state))
    if state and state.step > total:
        raise UserError(
            f"The run is at step {first + state.step}, and train.{key} ends {'its stage' if first else 'it'} at step "
            f"{first + total}: give more, or resume an older checkpoint."
        )
    if total > LAST_STEP:
        raise UserError(
            f"train.{key} = {getattr(train, key)} makes {total} steps of data.train: lower it, so that they are at "
            f"most {LAST_STEP}, which a checkpoint's name has room for."
        )
    return total, min(warmup_steps(train, optim, samples, state), total - 1)


def warmup_steps(train: Train, optim: Optim, samples: int, state: TrainState | None = None) -> int:
    """Updates of a warm-up, whatever comes after it; arguments as for `schedule_steps`."""
    if optim.warmup_steps >= 0:
        return optim.warmup_steps
    return round(optim.warmup_epochs * samples / train.global_batch + float(_offset(train, state)))


def _offset(train: Train, state: TrainState | None) -> Fraction:
    """How many more updates were made than the same samples take with the present global batch."""
    if state is None:
        return Fraction(0)
    made = (state.step + len(state.skipped)) * train.global_batch
    return Fraction(made - state.samples_seen, train.global_batch)
