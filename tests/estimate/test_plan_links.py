"""The plan of a corpus of links: its rates are the stored results, its arithmetic is that of a few lines here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvlm.__main__ import main
from mvlm.errors import ExitCode
from mvlm.estimate.links import (
    IMAGES_A_CPU_SECOND,
    LINK_MS,
    PIXELS,
    LinkTablePlan,
    ScoringPlan,
    plan_links,
    plan_scoring,
)
from tests.conftest import ROOT

RESULTS = ROOT / "benchmarks/data/results"


def test_the_rates_are_the_stored_results() -> None:
    kept = json.loads((RESULTS / "download.json").read_text())
    ours = next(run for run in kept["runs"] if run["case"] == "ours, as they come")
    assert round(ours["cpu_s"] / kept["count"] * 1e3, 2) == LINK_MS
    written = json.loads((RESULTS / "write.json").read_text())
    assert written["images/CPU-s"]["whole sharding"] == IMAGES_A_CPU_SECOND
    assert written["corpus"]["size"][0] * written["corpus"]["size"][1] == PIXELS


def test_the_slowest_resource_bounds_the_plan() -> None:
    asked = LinkTablePlan(
        3_600_000, cores=1, alive=0.5, megapixels=2 * PIXELS / 1e6, seconds=1e-6, gbit=1e6, encryption_ms=0.0
    )
    computing = plan_links(asked)
    assert computing["bound_by"] == "computing"
    assert computing["hours"] == pytest.approx(LINK_MS + 1000 / IMAGES_A_CPU_SECOND)
    assert computing["cost"] == pytest.approx(computing["hours"] * 0.04)

    network = plan_links(LinkTablePlan(10**9, nodes=2, cores=10**6, alive=1.0, image_kb=100, gbit=1))
    assert (network["bound_by"], network["downloaded_tb"]) == ("network", pytest.approx(100))
    assert network["hours"] == pytest.approx(1e9 * 1e5 * 8 / 2e9 / 3600)

    waiting = plan_links(LinkTablePlan(10**9, cores=4, seconds=30, connections=100))
    assert waiting["bound_by"] == "waiting for hosts"
    assert waiting["hours"] == pytest.approx(1e9 * 30 / 400 / 3600)


def test_a_plan_is_printed_with_its_assumptions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", "data", "--links", "1000000", "--nodes", "2", "--stored-kb", "40"]
    assert main([*argv, "--json", str(tmp_path / "plan.json")]) == 0
    said = capsys.readouterr().out
    assert "alive 0.7" in said and "stored_kb 40" in said and "bound by" in said
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["images"] == 700_000
    assert plan["stored_tb"] == pytest.approx(0.028)


def test_scoring_takes_the_time_of_its_forward_passes_and_products(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ScoringPlan(gpus=4, pairs_per_s=100, clusters=1000, width=256, tflops=10, kept=0.25, gpu_hour=3)
    plan = plan_scoring(1_440_000, asked)
    assert plan["scoring_hours"] == pytest.approx(1)
    similarities = 1_440_000 * 1000 + 1000 * 1440**2 / 2  # with centroids, and between all rows of a cluster
    assert plan["cluster_hours"] == pytest.approx(similarities * 512 / 1e13 / 3600)
    assert plan["cost"] == pytest.approx(3 * (4 + plan["cluster_hours"]))
    assert (plan["kept"], plan["embeddings_tb"]) == (360_000, pytest.approx(1.44e6 * 512 / 1e12))
    assert main(["plan", "data", "--links", "1000000", "--score-gpus", "2", "--score-rate", "50"]) == 0
    assert "1.9 hours on 2 GPUs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *(("links", "0", "the number of rows"), ("gbit", "0", "a number above 0"), ("stored-kb", "-1", "0 or more")),
        *(("alive", "1.5", "a share above 0 and at most 1"), ("kept", "0", "a share above 0 and at most 1")),
    ],
)
def test_a_wrong_number_is_refused(name: str, value: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "data", "--links", "5", f"--{name}", value]) == ExitCode.MISTAKE
    said = capsys.readouterr().err
    assert f"--{name} is {value}: " in said and wanted in said
