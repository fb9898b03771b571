"""How many updates a run makes, at which learning rates, and after which of them it logs, saves and evaluates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mvlm.checkpoint.state import TrainState
from mvlm.config.schema import Optim, Train
from mvlm.config.validate import LAST_STEP
from mvlm.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """
    Attributes:
        steps, warmup: updates in all, and of the learning rate's rise.
        floor: of the learning rate, as a share of its peak.
        log_every, save_every, eval_every: steps; 0 = after the last alone.
    """

    steps: int
    warmup: int
    floor: float
    log_every: int
    save_every: int
    eval_every: int

    def is_due(self, every: int, step: int) -> bool:
        """Whether something is due after this step that is done so often, and after the last."""
        return step == self.steps or (every > 0 and step % every == 0)


def lr_factor(step: int, warmup: int, total: int, floor: float) -> float:
    """Share of the peak learning rate at `step` (0 is the first update).

    Rises linearly over the first `warmup` updates, the first of which already moves, then falls along a cosine
    to `floor` at the last of `total` updates.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def schedule_steps(train: Train, optim: Optim, samples: int, state: TrainState | None = None) -> tuple[int, int]:
    """Updates in all and updates of warm-up, of so many samples an epoch.

    Args:
        state: that a run is resumed from. Where updates before it took another global batch, epochs are still counted
            in samples: the learning rate continues from where it was, and its warm-up may have begun before update 0.

    Raises:
        UserError: there are more than a checkpoint's name has room for, or fewer than have been made.
    """
    per_epoch, offset = samples / train.global_batch, 0.0
    if state:
        offset = ((state.step + len(state.skipped)) * train.global_batch - state.samples_seen) / train.global_batch
    total = train.steps or math.ceil(train.epochs * per_epoch + offset)
    if state and state.step > total:
        raise UserError(
            f"The run is at step {state.step}, and train.{'steps' if train.steps else 'epochs'} ends it at step "
            f"{total}: give more, or resume an older checkpoint."
        )
    if total > LAST_STEP:
        raise UserError(
            f"train.epochs = {train.epochs} makes {total} steps of data.train: lower it, so that they are at "
            f"most {LAST_STEP}, which a checkpoint's name has room for."
        )
    warmup = optim.warmup_steps
    if warmup < 0:
        warmup = round(optim.warmup_epochs * per_epoch + offset)
    return total, min(warmup, total - 1)
