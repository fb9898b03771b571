"""Objectives besides the paper's four: each is one file and one line in `EXTRA`. docs/extending.md has an example."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from mvlm.batch import Encoded
from mvlm.errors import UserError

EXTRA: dict[str, Callable[[Encoded], Tensor]] = {}
"""By name: a scalar from the micro-batch's contrastive features. It has to be a mean over pairs, so that the mean over
micro-batches is that of the global batch, whatever the number of ranks and accumulation steps."""


def chosen(names: Iterable[str]) -> dict[str, Callable[[Encoded], Tensor]]:
    """The objectives of these names.

    Raises:
        UserError: there is no such objective.
    """
    for name in names:
        if name not in EXTRA:
            known = ", ".join(EXTRA) or "none"
            raise UserError(f"objectives.extra names {name!r}: mvlm/model/losses/extra.py has {known}; add it there.")
    return {name: EXTRA[name] for name in names}
