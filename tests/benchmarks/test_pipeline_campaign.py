"""The campaign of faults in the steps of a pipeline: its trials are stable, and its graph uses the store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.pipeline.campaign import OFF_THE_STORE, RESULTS, STORE, drawn
from benchmarks.pipeline.workplace import FILE, OUTPUTS, prepare
from cluster.pipeline.file import load_pipeline
from cluster.pipeline.graph import Graph


def test_stored_trials_are_those_that_are_drawn() -> None:
    trials = drawn()
    for line in map(json.loads, RESULTS.read_text().splitlines()):
        assert trials[line["trial"]] == (line["backend"], line["step"], line["fault"])
    assert len(trials) == len(set(trials)) == 59


def test_the_store_is_lost_in_exactly_the_steps_that_need_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, OUTPUTS, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    graph = Graph(load_pipeline(FILE, []))
    steps = graph.pipeline.steps
    needing = {name for name in steps if "s3://" in str([graph.reads[name], steps[name].writes])}
    assert needing == {step for _, step, fault in drawn() if fault == STORE} == {*OUTPUTS} - {*OFF_THE_STORE}
    assert steps["train"].settings["checkpoint"] == {"every": 5, "mirror": "s3://faults/run"}
    assert graph.pipeline.environment(steps["score"])["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
