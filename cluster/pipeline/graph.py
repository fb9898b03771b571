"""Which step waits for which, by what they read and write."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from mvlm.config.toml import strings_in
from mvlm.errors import Mistakes, UserError

from ..job import out_of_sight
from .file import Pipeline, PipelineStep, normal


def inside(path: str, folder: str) -> bool:
    """Whether a path is the folder, or below it; both as `normal` gives them."""
    return path == folder or path.startswith(f"{folder}/")


class Graph:
    """The graph of a pipeline.

    Attributes:
        reads: what each step reads: its own `reads`, and every word that names what another step writes.
        needs: the steps that each step waits for, in the order of the file.
        order: all steps, each after those that it waits for.

    Raises:
        UserError: two steps write one folder, nobody makes an input, or steps wait for each other.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, steps = pipeline, pipeline.steps
        mistakes = Mistakes()
        self.reads = {name: _reads(step, steps) for name, step in steps.items()}
        self.needs = {name: [other for other in steps if self._waits_for(name, other)] for name in steps}
        for sentence in (*self._two_writers(), *self._orphans()):
            mistakes.add(f"{pipeline.path}: {sentence}")
        mistakes.settle()
        try:
            self.order = list(TopologicalSorter(self.needs).static_order())
        except CycleError as error:
            circle = " waits for ".join(reversed(error.args[1]))
            raise UserError(
                f"{pipeline.path}: {circle}: none of them can be the first; change what one reads or writes."
            ) from None

    def made(self, path: str) -> list[str]:
        """The steps that make what is at a path, or a folder that it is in."""
        return [name for name, step in self.pipeline.steps.items() if any(inside(path, own) for own in step.writes)]

    def from_outside(self, name: str) -> list[str]:
        """What a step reads that no step makes."""
        return [path for path in self.reads[name] if not self.made(path)]

    def with_dependents(self, names: Iterable[str]) -> set[str]:
        """Steps, and all that depend on them, directly or not."""
        found = set(names)
        for other in self.order:
            if found & set(self.needs[other]):
                found.add(other)
        return found

    def _waits_for(self, name: str, other: str) -> bool:
        """A reader waits for the steps that make what it reads, and for those above it in the file that add to it."""
        if name == other:
            return False
        names, theirs = list(self.pipeline.steps), self.pipeline.steps[other]
        for path in self.reads[name]:
            for written in theirs.writes:
                is_later = written in self.reads[other] and names.index(other) > names.index(name)
                if inside(path, written) and not is_later:
                    return True
        return False

    def _two_writers(self) -> Iterator[str]:
        written = [(path, name) for name, step in self.pipeline.steps.items() for path in step.writes]
        for number, (path, name) in enumerate(written):
            for inner, other in written[number + 1 :]:
                (outer, maker), (within, adder) = (path, name), (inner, other)
                if inside(path, inner) and path != inner:
                    (outer, maker), (within, adder) = (inner, other), (path, name)
                if not inside(within, outer):
                    continue
                if maker == adder:
                    yield f"{name}.writes has {within}, which is {outer} or lies in it: leave it out."
                elif not self._adds(adder, outer) and not (within == outer and self._adds(maker, outer)):
                    yield (
                        f"{maker} and {adder} both write {within if within == outer else f'to {outer}'}: "
                        f"give one another place, or add {outer} to {adder}.reads if it adds to what is there."
                    )

    def _adds(self, adder: str, outer: str) -> bool:
        """Whether a step that writes within a folder reads it, or some of it, and so comes after it is made."""
        return any(inside(read, outer) for read in self.reads[adder])

    def _orphans(self) -> Iterator[str]:
        for name in self.pipeline.steps:
            for path in self.from_outside(name):
                if "://" not in path and not out_of_sight(path) and not glob.glob(path) and not Path(path).exists():
                    yield f"{name} reads {path}, which is not there and which no step writes: fix {name}.reads."


def _reads(step: PipelineStep, steps: dict[str, PipelineStep]) -> tuple[str, ...]:
    """What a step reads, in the order in which it is named, each path once."""
    others = [path for other in steps.values() if other is not step for path in other.writes]
    named = [path for path in map(normal, _words(step)) if any(inside(path, other) for other in others)]
    own = set(step.writes) - set(step.reads)
    return tuple(dict.fromkeys([*step.reads, *(path for path in named if path not in own)]))


def _words(step: PipelineStep) -> Iterator[str]:
    for word in (*step.command, *strings_in(step.settings)):
        yield word
        if "=" in word:
            yield word.partition("=")[2]
