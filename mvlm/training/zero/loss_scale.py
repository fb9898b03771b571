"""fp16's loss scale, which DeepSpeed halves when gradients overflow, and doubles after long without an overflow."""

from __future__ import annotations

from typing import Any

REMEMBERED = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""DeepSpeed's names for all that the next steps depend on."""


class LossScale:
    """Fixed or dynamic.

    Args:
        scaler: DeepSpeed's.
    """

    def __init__(self, scaler: Any) -> None:
        self._scaler = scaler
        self._update, self._doubled = scaler.update_scale, 0.0
        if scaler.dynamic:
            scaler.raise_error_at_min_scale = False  # the engine says it in a sentence
            scaler.update_scale = self._update_later

    def _update_later(self, overflowed: bool) -> None:
        """Hold a doubled scale back until `finish_update`: DeepSpeed has yet to unscale this update's gradients."""
        before = self._scaler.cur_scale
        self._update(overflowed)
        if self._scaler.cur_scale > before:
            self._doubled, self._scaler.cur_scale = self._scaler.cur_scale, before

    def finish_update(self) -> None:
        """Apply a scale that doubled in this update."""
        if self._doubled:
            self._scaler.cur_scale, self._doubled = self._doubled, 0.0

    @property
    def now(self) -> float:
        return float(self._scaler.cur_scale)

    @property
    def is_smallest(self) -> bool:
        """Whether it is dynamic and can be halved no further."""
        return bool(self._scaler.dynamic and self._scaler.cur_scale == self._scaler.min_scale)

    def state(self) -> dict[str, float] | None:
        """What is to be remembered of it; None if it is fixed."""
        return {name: float(getattr(self._scaler, name)) for name in REMEMBERED} if self._scaler.dynamic else None

    def set_state(self, state: dict[str, float]) -> None:
        """Continue from what `state` gave; does nothing if it is fixed."""
        if self._scaler.dynamic:
            for name in REMEMBERED:
                setattr(self._scaler, name, state[name] if name == "cur_scale" else int(state[name]))
