"""Images for a rank that cannot read its own, while the others wait for it in each call of the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mvlm.errors import UserError


class StandIns:
    """Black images from the first unreadable one on, so that all ranks reach the same end."""

    def __init__(self) -> None:
        self._mistake: UserError | None = None

    def or_read(self, read: Callable[[], list[np.ndarray]], views: int, size: int) -> list[np.ndarray]:
        """What `read` returns, or else `views` black images [3, size, size]; after the first error nothing is read."""
        if self._mistake is None:
            try:
                return read()
            except UserError as error:
                self._mistake = error
        return [np.zeros((3, size, size), np.uint8)] * views

    def settle(self) -> None:
        """Raise the first `UserError` since the last call, if any."""
        mistake, self._mistake = self._mistake, None
        if mistake:
            raise mistake
