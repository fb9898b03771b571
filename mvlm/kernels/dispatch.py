"""Which implementation of an operation runs, and why the others do not.

Every operation is one `Op`: implementations in order of preference, its plain torch reference the last of them. An
implementation is left out where its `probe` names a reason that it cannot run on this machine, and passed over where
its `accepts` names a reason against these very arguments. Left to itself an operation takes the first that serves; an
implementation asked for by name runs or raises.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mvlm.errors import UserError

AUTO = "auto"


def here() -> None:
    """The probe of what needs nothing."""
    return


def anything(*_: Any, **__: Any) -> None:
    """The `accepts` of what takes every argument."""
    return


def always(*_: Any, **__: Any) -> bool:
    """The `pays` of what is faster than the next in line whatever the arguments."""
    return True


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Args:
        name: as users write it in the run TOML.
        run: the function.
        probe: why it cannot run on this machine, None where it can.
        accepts: given a call's arguments, why it cannot take them, None where it can. It reads device, dtype and shape
            alone: never values, which would wait for the device.
        version: of the library behind it.
        pays: given a call's arguments, whether it is faster than the next in line; where not, it runs when asked for
            by name alone.
    """

    name: str
    run: Callable[..., Any]
    probe: Callable[[], str | None] = here
    accepts: Callable[..., str | None] = anything
    version: Callable[[], str] = lambda: ""
    pays: Callable[..., bool] = always


class Op:
    """An operation; called, it runs the implementation chosen.

    Attributes:
        calls: how often each implementation has run, so that a silent fallback shows.
    """

    def __init__(self, name: str, *implementations: Implementation) -> None:
        self.name, self.implementations = name, implementations
        self.calls: Counter[str] = Counter()
        self.choice = AUTO
        self._probed: dict[str, str | None] = {}
        self._said: set[str] = set()

    def choose(self, name: str) -> None:
        """Take "auto" or one implementation by name from now on.

        Raises:
            UserError: there is none of that name, or it cannot run on this machine.
        """
        names = [implementation.name for implementation in self.implementations]
        if name != AUTO and name not in names:
            raise UserError(f"kernels.{self.name} = {name!r} is not known: choose auto, {', '.join(names)}.")
        if name != AUTO and (reason := self.why_not(self._named(name))):
            raise UserError(f"kernels.{self.name} = {name!r} cannot run here ({reason}): choose auto or another.")
        self.choice = name

    def why_not(self, implementation: Implementation) -> str | None:
        """Why it cannot run on this machine; probed once."""
        if implementation.name not in self._probed:
            self._probed[implementation.name] = implementation.probe()
        return self._probed[implementation.name]

    def first(self, *args: Any, **kwargs: Any) -> Implementation:
        """The implementation that these arguments are computed by.

        Raises:
            UserError: the one asked for by name does not take them.
        """
        if self.choice != AUTO:
            chosen = self._named(self.choice)
            if reason := chosen.accepts(*args, **kwargs):
                raise UserError(f"kernels.{self.name} = {chosen.name!r} cannot compute this ({reason}): choose auto.")
            return chosen
        passed_over: list[str] = []
        for implementation in self.implementations:
            if self.why_not(implementation):
                continue
            reason = implementation.accepts(*args, **kwargs)
            if reason is None and implementation.pays(*args, **kwargs):
                self._say(implementation, passed_over)
                return implementation
            if reason:
                passed_over.append(f"{implementation.name}: {reason}")
        raise UserError(f"No implementation of {self.name} takes this: {'; '.join(passed_over)}.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        implementation = self.first(*args, **kwargs)
        self.calls[implementation.name] += 1
        return implementation.run(*args, **kwargs)

    def _named(self, name: str) -> Implementation:
        return next(implementation for implementation in self.implementations if implementation.name == name)

    def _say(self, implementation: Implementation, passed_over: list[str]) -> None:
        """Say once why what could run on this machine is passed over on a GPU, where it costs speed."""
        text = "; ".join(passed_over)
        if text and text not in self._said:
            self._said.add(text)
            print(f"mvlm: {self.name} runs as {implementation.name} ({text}).", file=sys.stderr, flush=True)


def choose(ops: Mapping[str, Op], choices: Mapping[str, str]) -> None:
    """Apply the run's `[kernels]` table: op -> implementation or "auto"."""
    for name, op in ops.items():
        op.choose(choices.get(name, AUTO))
