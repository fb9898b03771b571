"""What a table takes from beginning to end."""

from __future__ import annotations

from mvlm.reproduce.corpora import in_order
from mvlm.reproduce.steps import EvaluateStep, GenerateStep, ShardStep, TrainStep, Workplace
from mvlm.reproduce.tables import Table
from mvlm.runtime.chain import ChainStep


def chain(table: Table, place: Workplace) -> list[ChainStep]:
    """The steps in their order: shards, then each run followed by its evaluations, so that results come early."""
    steps: list[ChainStep] = [GenerateStep(place)] if place.miniature else []
    steps += [ShardStep(place, name) for name in in_order(table.shards)]
    for name in table.runs:
        steps.append(TrainStep(place, name))
        steps += [EvaluateStep(place, each) for each in table.evaluations if each.run == name]
    return steps
