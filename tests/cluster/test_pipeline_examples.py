"""The shipped pipelines: the back-ends take each one, and its commands work."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

import cluster.check
import cluster.command_lines
from cluster.__main__ import main
from cluster.attempt import JobAttempt
from cluster.pipeline import plan, ray, slurm
from cluster.pipeline.check import refused
from cluster.pipeline.file import BY_RUN, load_pipeline
from cluster.pipeline.graph import Graph
from cluster.pipeline.submission import draft
from cluster.pipeline.words import program_words
from cluster.record import JobRecord
from mvlm.__main__ import main as mvlm
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


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_an_image_that_the_back_end_cannot_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["check", "cluster/pipelines/emoji.toml", "--on", backend, "train.image=mvlm.sqsh"]) == 1
    assert "train.image is 'mvlm.sqsh'" in capsys.readouterr().err


def test_the_emoji_are_found_away_from_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Graph(load_pipeline("emoji.toml")).from_outside("shards") == [str(ROOT / "examples/emoji.tar")]


def test_the_programs_accept_the_commands_of_shipped_pipelines() -> None:
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


def test_the_plan_counts_each_task_and_each_attempt_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    text = '[pipeline]\nname = "p"\ncore_hour = 1.0\n[[step]]\nname = "s"\nkind = "shard"\ncommand = ["folder", "in"]\n'
    (tmp_path / "p.toml").write_text(text + 'writes = ["out"]\nparts = 3\ncpus = 2\ntime = "5:00:00"\n')
    found = Graph(load_pipeline("p.toml"))
    new = draft(found, [], "local")
    assert plan.plans(found, new) == [plan.StepPlan("s", 5.0, "its time limit", 30.0)]
    took = {"": [1], "part-00001": [1, 2], "part-00002": [4], "part-00003": [2]}  # hours of each attempt
    for folder, hours in took.items():
        attempts = [JobAttempt(number, 0.0, 3600.0 * each, 75) for number, each in enumerate(hours, 1)]
        attempts[-1].exit_code = 0
        (logs := new.folder("s") / folder).mkdir(parents=True, exist_ok=True)
        key = "earlier" if folder == "part-00003" else "k"
        JobRecord("s", "slurm", "", "n1", job_id=key, attempts=attempts).save(logs)
    assert plan.plans(found, new) == [plan.StepPlan("s", 5.0, "as before", 16.0)]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Commands of `mvlm` and of the parsers run in this process, which spares each the import of torch; the list names
    the commands of `mvlm`."""
    asked: list[str] = []

    def run(words: Sequence[str], input: str = "", **_: object) -> subprocess.CompletedProcess[str]:
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            if words[1] == "-c":
                monkeypatch.setattr("sys.stdin", StringIO(input))
                exec(words[2], {})
                return subprocess.CompletedProcess(words, 0, out.getvalue(), err.getvalue())
            assert words[1:3] == ["-m", "mvlm"]
            asked.append(words[3])
            code = mvlm(list(words[3:]))
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    for module in (cluster.check, cluster.command_lines, plan):
        monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL))
    with patch.dict(os.environ):
        yield asked


TEXT_ARGS = "{hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32}"


def without_downloads(graph: Graph) -> list[str]:
    """Overrides with which no run downloads from a hub, and its operations are counted quickly."""
    small = {"model.text": "roberta", "model.text_args": TEXT_ARGS, "model.cross_depth": "1"}
    small |= {"model.vision": "vit_tiny_patch16_224", "model.vision_args": "{depth=1}", "model.cross_heads": "2"}
    own = small | {"model.vision_weights": "random", "model.text_weights": "random", "data.tokenizer": "auto"}
    runs = runs_of(graph) if graph.pipeline.settings.gpu else []
    return [f"{name}.settings.{key}={value}" for name in runs for key, value in own.items()]


def runs_of(graph: Graph) -> list[str]:
    return [step.name for step in graph.pipeline.steps.values() if step.kind in BY_RUN]


def test_a_shipped_pipeline_passes_check_and_plan_by_its_time_limits(
    graph: Graph, in_this_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [graph.pipeline.path, *without_downloads(graph)]
    assert main(["check", *words, "--on", "slurm"]) == 0, capsys.readouterr().err
    assert main(["plan", *words, "pipeline.gpu="]) == 0, capsys.readouterr().err
    assert in_this_process == ["check"] * len(runs_of(graph))
    said = capsys.readouterr().out
    assert "the whole: " in said
    assert all(re.search(rf"^{name} .* h .*(limit|before|nothing)", said, re.MULTILINE) for name in graph.order)


@pytest.mark.campaign
def test_a_shipped_pipeline_is_planned_from_what_its_runs_compute(
    graph: Graph, in_this_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With `mvlm plan` for each of its runs, at several seconds each."""
    assert main(["plan", graph.pipeline.path, *without_downloads(graph)]) == 0, capsys.readouterr().err
    planned = len(runs_of(graph)) if graph.pipeline.settings.gpu else 0
    assert in_this_process == ["plan"] * planned
    assert capsys.readouterr().out.count("mvlm plan, ") == planned
