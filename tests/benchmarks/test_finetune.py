"""The downstream campaign: its margins above predictors of one side alone, and spreads over seeds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.downstream.finetune import PARTS, RESULTS, WORLDS, spread
from benchmarks.downstream.one_sided import STATED, by_text_alone
from benchmarks.downstream.statements import KINDS, by_kind_of_statement, kind_of
from data_tools.__main__ import main as data_tools
from mvlm.data.shards.mixture import Mixture

MARGINS = {"vqa": 0.55, "nlvr2": 0.45, "entailment": 0.55}
"""By how much the worst seed must beat the best predictor from one side alone."""


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("task", list(WORLDS))
def test_measured_accuracies_are_above_chance_by_a_margin(task: str, part: str) -> None:
    measured = json.loads(RESULTS.read_text())["tasks"][task]
    chance = max(measured["chance"].values())
    assert len(measured["pretrained"]["seeds"]) >= 3
    assert measured["pretrained"][f"{task}_{part}"]["accuracy"]["min"] > chance + MARGINS[task]
    for other in ("wrong_images", "wrong_texts"):  # so it is the other side that matters
        assert measured["pretrained"]["exchanged"][other]["max"] < chance + 0.05


@pytest.mark.parametrize("task", list(WORLDS))
def test_sentences_of_training_predict_no_more_than_is_stated(task: str, tmp_path: Path) -> None:
    out = tmp_path / task
    words = ["synth", "--task", WORLDS[task], "--count", "1500", "--seed", "3", "--split", "train=0.8,eval=0.2"]
    assert data_tools([*words, "--out", str(out)]) == 0
    margin = 0.07  # less than three standard errors of 300 rows, 0.087, since blocks are balanced
    assert by_text_alone(task, out) <= STATED[task]["text_alone"] + margin


def test_every_kind_of_statement_is_recognised_by_its_words_and_counted(tmp_path: Path) -> None:
    words = ["synth", "--task", "pairs", "--count", "600", "--seed", "3", "--out", str(tmp_path / "pairs")]
    assert data_tools(words) == 0
    mixture = Mixture([tmp_path / "pairs"], task="nlvr2")
    rows = [mixture.row(row).own for row in range(len(mixture))]
    for row in rows:
        fitting = [kind for kind, pattern in KINDS.items() if re.match(pattern, row["sentence"].lower())]
        assert len(fitting) == 1, row["sentence"]
    wrong_of_sums = [row["label"] ^ (kind_of(row["sentence"]) == "number of both together") for row in rows]
    (tmp_path / "predictions").write_text("".join(f"key-{label},{label}\n" for label in wrong_of_sums))
    found = by_kind_of_statement(tmp_path / "predictions", tmp_path / "pairs")
    assert {kind: one["score"] for kind, one in found.items()} == {
        kind: float(kind != "number of both together") for kind in KINDS
    }
    assert sum(one["rows"] for one in found.values()) == len(rows)


def test_the_spread_covers_numbers_and_omits_texts() -> None:
    found = [{"a": {"b": 0.5, "name": "x"}, "ok": True, "n": 1}, {"a": {"b": 0.7, "name": "y"}, "ok": True, "n": 3}]
    assert spread(found) == {
        "a": {"b": {"mean": pytest.approx(0.6), "min": 0.5, "max": 0.7}},
        "n": {"mean": 2, "min": 1, "max": 3},
    }
