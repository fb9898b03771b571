"""Which implementation of an operation runs, and why the others do not.

Every operation is one `Op`: implementations in order of preference, its plain torch reference the last of them. An
implementation is left out if its `probe` gives a reason why it cannot run on this machine, and passed over if its
`accepts` gives a reason against a call's arguments, or its `pays` one why it would be the slower choice for them. By
default an operation takes the first that remains; an implementation asked for by name runs, whether it pays or not, or
raises.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mvlm.errors import UserError

AUTO = "auto"
FOR_CPUS, FOR_FP32 = "it runs on CPUs", "it computes in fp32"
"""Reasons against other devices and other precisions that are not worth a line in the log."""


def here() -> None:
    """The `probe` of what needs nothing."""
    return


def anything(*_: Any, **__: Any) -> None:
    """The `accepts` or `pays` of what suits all arguments."""
    return


def by_name_only(*_: Any, **__: Any) -> str:
    """The `pays` of what has not been timed."""
    return "not measured yet: taken only if it is named"


def nothing(_: bool) -> None:
    """The `switch` of what changes nothing outside of its calls."""


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Args:
        name: as users write it in the run TOML.
        run: the function.
        probe: why it cannot run on this machine, None if it can.
        accepts: given a call's arguments, why it cannot take them, None if it can. It reads device, dtype and shape
            alone: never values, which would wait for the device.
        pays: likewise, why another is the better choice for what it could take; asked only if none is chosen by name.
        library: the distribution that it comes from.
        switch: called with True when it is chosen by name, and with False when it no longer is: for what a library
            switches in the whole process.
    """

    name: str
    run: Callable[..., Any]
    probe: Callable[[], str | None] = here
    accepts: Callable[..., str | None] = anything
    pays: Callable[..., str | None] = anything
    library: str = "torch"
    switch: Callable[[bool], None] = nothing


class Op:
    """An operation; a call runs the chosen implementation.

    Attributes:
        calls: how often each implementation has run, so that a silent fallback shows.
    """

    def __init__(self, name: str, *implementations: Implementation) -> None:
        self.name, self.implementations = name, implementations
        self.calls: Counter[str] = Counter()
        self.choice = AUTO
        self._probed: dict[str, str | None] = {}
        self._reported: set[str] = set()

    def choose(self, name: str) -> None:
        """Take "auto" or one implementation by name from now on.

        Raises:
            UserError: there is none of that name, or it cannot run on this machine.
        """
        self.check_name(name)
        if name != AUTO and (reason := self.why_not(self._named(name))):
            raise UserError(f"kernels.{self.name} = {name!r} cannot run here ({reason}): choose auto or another.")
        before, self.choice = self.choice, name
        for one in self.implementations:
            if before != name and one.name in (before, name):
                one.switch(one.name == name)

    def check_name(self, name: str) -> None:
        """Raise `UserError` if neither "auto" nor an implementation has that name."""
        names = [AUTO, *(implementation.name for implementation in self.implementations)]
        if name not in names:
            raise UserError(f"kernels.{self.name} = {name!r} is not known: choose {', '.join(names)}.")

    def why_not(self, implementation: Implementation) -> str | None:
        """Why it cannot run on this machine; probed once."""
        if implementation.name not in self._probed:
            self._probed[implementation.name] = implementation.probe()
        return self._probed[implementation.name]

    def lacking(self) -> dict[str, str]:
        """Implementations that cannot run on this machine, and why."""
        return {one.name: reason for one in self.implementations if (reason := self.why_not(one))}

    def refusal(self, implementation: Implementation, *args: Any) -> str | None:
        """Why the operation would not choose an implementation for these arguments by itself."""
        return self.why_not(implementation) or implementation.accepts(*args) or implementation.pays(*args)

    def rule_out(self, name: str, reason: str) -> None:
        """Treat an implementation as one that cannot run, for example since another rank lacks it."""
        self._probed[name] = reason

    def first(self, *args: Any, **kwargs: Any) -> Implementation:
        """The implementation that these arguments are computed by.

        Raises:
            UserError: the one asked for by name does not take them.
        """
        if self.choice != AUTO:
            chosen = self._named(self.choice)
            if chosen.accepts is not anything and (reason := chosen.accepts(*args, **kwargs)):
                raise UserError(f"kernels.{self.name} = {chosen.name!r} cannot compute this ({reason}): choose auto.")
            return chosen
        refusals = {}
        for implementation in self.implementations:
            if implementation.pays is by_name_only or self.why_not(implementation):
                continue
            if implementation.accepts is not anything and (reason := implementation.accepts(*args, **kwargs)):
                if reason not in (FOR_CPUS, FOR_FP32):
                    refusals[implementation.name] = reason
            elif implementation.pays is anything or not implementation.pays(*args, **kwargs):
                if refusals:
                    self._report(implementation, refusals)
                return implementation
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
        raise UserError(f"No implementation of {self.name} takes this ({reasons}).")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        implementation = self.first(*args, **kwargs)
        if not torch.compiler.is_compiling():  # a call is then traced, not run
            self.calls[implementation.name] += 1
        return implementation.run(*args, **kwargs)

    def _named(self, name: str) -> Implementation:
        return next(implementation for implementation in self.implementations if implementation.name == name)

    def _report(self, implementation: Implementation, refusals: dict[str, str]) -> None:
        """Say once why an implementation that is there refused a call: the loss of speed would go unnoticed."""
        text = "; ".join(f"not as {name}: {reason}" for name, reason in refusals.items())
        if text not in self._reported and not torch.compiler.is_compiling():
            self._reported.add(text)
            logging.getLogger("mvlm").info(f"{self.name} runs as {implementation.name} ({text}).")
