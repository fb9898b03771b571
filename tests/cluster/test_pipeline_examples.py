"""The pipelines that are shipped: each is a graph that the back-ends take, and its commands are such that work."""

from __future__ import annotations

import re

import pytest

from cluster.__main__ import main
from cluster.pipeline import plan, ray, slurm
from cluster.pipeline.check import refused
from cluster.pipeline.file import BY_RUN, load_pipeline
from cluster.pipeline.graph import Graph
from cluster.pipeline.submission import draft
from cluster.pipeline.words import program_words
from mvlm.config.load import load_config
from mvlm.config.shipped import find_file
from tests.conftest import ROOT

SHIPPED = sorted((ROOT / "cluster/pipelines").glob("*.toml"))
NAMES = {"4m", "emoji", "icons", "web"}


@pytest.fixture(params=SHIPPED, ids=lambda path: path.stem)
def graph(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Graph:
    monkeypatch.chdir(ROOT)
    return Graph(load_pipeline(request.param))


def test_a_shipped_pipeline_can_be_submitted(graph: Graph) -> None:
    assert {path.stem for path in SHIPPED} == NAMES
    assert slurm.check(graph) == [] and ray.check(graph) == []
    for step in graph.pipeline.steps.values():
        if step.kind in BY_RUN:
            load_config(find_file(step.run, "configs"), step.overrides)
    last = graph.pipeline.steps[graph.order[-1]]
    assert graph.needs[last.name], "the steps hang together"


def test_the_commands_of_shipped_pipelines_are_read_by_their_programs() -> None:
    words = {"wrong": ["mvlm", "export", "run", "--into", "x"]}
    for path in SHIPPED:
        steps = load_pipeline(path).steps.values()
        words |= {f"{path.stem} {step.name}": program_words(step) for step in steps if step.kind not in BY_RUN}
    assert len(words) > 20 and refused(words).keys() == {"wrong"}


def test_a_shipped_pipeline_is_rendered_with_what_each_step_waits_for(graph: Graph) -> None:
    scripts = slurm.render(graph, draft(graph, [], "slurm"))
    steps = graph.pipeline.steps
    assert scripts.count("#!/bin/bash") == len(steps) + sum(step.parts > 1 for step in steps.values())
    for name, needs in graph.needs.items():
        if needs:
            assert re.search(
                rf"job-name={graph.pipeline.settings.name}-{name}\n(#.*\n)*.*afterok:{':'.join(needs)}", scripts
            )


def test_a_plan_adds_up_along_the_longest_chain(graph: Graph) -> None:
    found = [plan.StepPlan(name, 2.0, "", 10.0) for name in graph.order]
    depth: dict[str, int] = {}
    for name in graph.order:
        depth[name] = 1 + max((depth[need] for need in graph.needs[name]), default=0)
    assert plan.longest(graph, found) == 2.0 * max(depth.values())
    assert f"which cost {10 * len(found):,.2f}" in plan.as_text(graph, found)


@pytest.mark.campaign
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_pipeline_passes_check_and_plan(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `mvlm check` and `mvlm plan` of each of its runs, which take seconds each."""
    monkeypatch.chdir(ROOT)
    assert main(["check", str(path), "--on", "slurm"]) == 0, capsys.readouterr().err
    assert main(["plan", str(path)]) == 0
    assert "the whole: " in capsys.readouterr().out
