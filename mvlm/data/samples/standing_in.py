"""Images of a rank that cannot read its own, while the others wait for it in each call of the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mvlm.errors import UserError


class StandIns:
    """Black images from the first on that cannot be read, so that all ranks come to the same end."""

    def __init__(self) -> None:
        self._mistake: UserError | None = None

    def or_read(self, read: Callable[[], list[np.ndarray]], views: int, size: int) -> list[np.ndarray]:
        """What `read` gives, or as many views of [3, size, size]; after a first mistake nothing is read any more."""
        if self._mistake is None:
            try:
                return read()
            except UserError as error:
                self._mistake = error
        return [np.zeros((3, size, size), np.uint8)] * views

    def settle(self) -> None:
        """Raises UserError where any image has stood in since the last time."""
        mistake, self._mistake = self._mistake, None
        if mistake:
            raise mistake
