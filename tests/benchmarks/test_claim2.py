"""The preregistered campaign: its plan against the page, its analysis on known cases, its refusal of changed code."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.claim.cell import reached
from benchmarks.claim.paired import holm
from benchmarks.claim.run import one_rank
from benchmarks.claim.scores import pack
from benchmarks.claim2 import budget, campaign, grounding, plan, table
from benchmarks.claim2.corpus import Icons, by_unit
from data_tools.__main__ import main as data_tools
from mvlm.api.dictionary import make_dictionary
from mvlm.config.load import load_config
from mvlm.errors import ExitCode, UserError
from mvlm.training.health.signals import StopRequests
from tests.conftest import ROOT
from tests.ranks import run_ranks

PAGE = (ROOT / "docs/claim2.md").read_text(encoding="utf-8")


def test_holms_correction_of_a_worked_example() -> None:
    found = holm([0.01, 0.04, 0.03, 0.005])
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_the_page_shows_the_overrides_of_every_arm() -> None:
    rows = {row.split("|")[1].strip(" `"): row for row in PAGE.splitlines() if row.startswith("| `")}
    assert set(rows) == set(plan.ARMS)
    for arm, overrides in plan.ARMS.items():
        assert re.findall(r"objectives\.\S+?=[\w.]+", rows[arm].split("|")[2]) == list(overrides)
    for size in plan.SIZES.values():
        for arm in plan.ARMS:
            config = load_config(ROOT / size.toml, [*size.settings, *plan.ARMS[arm]])
            assert config.objectives.itc and config.objectives.itm and not config.data.flip and config.train.spike == 0
            assert config.objectives.itm_negatives == "uniform"
        contrast = load_config(ROOT / size.toml, [*size.settings, *size.contrast, *plan.CONTRAST_ALONE])
        assert [name for name in ("itc", "itm", "image", "text") if contrast.objectives.weight(name)] == ["itc"]


def test_the_grid_has_the_cells_of_the_page_in_their_order() -> None:
    cells = plan.grid(plan.SIZES["small"])
    assert len(cells) == len(set(cells)) == 5 * 3 * 5 + 3 * 5
    first, rates, primary, more, others, rest = plan.in_turn(plan.SIZES["small"])
    begun = {(20, seed) for seed in (*range(10), plan.RATE_SEED)}
    assert {(cell.share, cell.seed) for cell in first} == begun and len(first) == len(begun)
    assert {(cell.share, cell.seed) for cell in more} == set(product((4, 100), range(5))) and len(more) == 10
    assert {cell.arm for cell in first + more} == {plan.CONTRAST}
    assert primary + rest == cells and len(primary) == 30
    assert sorted(map(str, rates + others)) == sorted(map(str, plan.rate_cells()))
    assert {cell.arm for cell in rates} == {cell.arm for cell in primary} == {"joint", "independent", "itc_itm"}
    assert {cell.share for cell in primary} == {20} and {cell.seed for cell in primary} == set(range(10))
    assert len(plan.rate_cells()) == 15 and not {c.seed for c in plan.rate_cells()} & {c.seed for c in cells}


def test_all_arms_start_from_the_same_contrastive_run(tmp_path: Path) -> None:
    icons = Icons(tmp_path, "foils", "validation")
    made: Any = campaign.Campaign(plan.SIZES["small"], tmp_path, tmp_path, tmp_path)
    made.__dict__["icons"] = icons
    (tmp_path / campaign.COSTS).write_text(json.dumps({arm: {"steps": 900} for arm in plan.ARMS}))
    lines = [json.dumps({"cell": cell.name, "chosen_by": 1.0 if cell.rate == 3 else 0.5}) for cell in plan.rate_cells()]
    (tmp_path / campaign.CELLS).write_text("\n".join(lines))
    contrast = made.run_of(plan.IconCell(plan.CONTRAST, 20, 4))
    config = load_config(contrast.toml, contrast.words)
    alone = [name for name in ("itc", "itm", "image", "text") if config.objectives.weight(name)]
    assert (alone, config.checkpoint.init, config.train.steps) == (["itc"], "", 600)
    assert (config.optim.lr, config.train.global_batch, config.run.seed) == (4e-3, 256, 4)
    for arm in plan.ARMS:
        mine = made.run_of(plan.IconCell(arm, 20, 4))
        config = load_config(mine.toml, mine.words)
        assert config.checkpoint.init == str(contrast.folder) != config.run.dir
        assert (config.train.steps, config.optim.lr, config.train.global_batch) == (900, 6e-3, 64)
        assert config.model.vision_weights == icons.dictionary(20) and config.data.tokenizer == icons.tokenizer(20)


def begin(scenes: Path, home: Path, asked_to_stop: bool) -> int:
    """Train the contrastive beginning of a cell of the rehearsal, on scenes."""
    icons = Icons(home / "icons", str(home / "foils"), str(home / "foils"))
    for link, corpus in ((icons.train(4)[0], "train"), (icons.sample("validation"), "eval")):
        Path(link).parent.mkdir(parents=True, exist_ok=True)
        if not Path(link).exists():
            Path(link).symlink_to(scenes / corpus)
    made: Any = campaign.Campaign(plan.SIZES["rehearse"], home, home, home)
    made.__dict__["icons"] = icons
    stop = StopRequests()
    if asked_to_stop:
        os.kill(os.getpid(), signal.SIGTERM)
    try:
        with one_rank():
            campaign._train_beginning(made, plan.IconCell("joint", 4, 0), stop)
    except campaign.Stopped:
        return ExitCode.REQUEUE
    return 0


def test_a_beginning_whose_run_is_gone_is_trained_again(scenes: Path, tmp_path: Path) -> None:
    made = Icons(tmp_path / "icons", "", "")
    words = ["synth", "--task", "foils", "--count", "8", "--seed", "1", "--out", str(tmp_path / "foils")]
    assert data_tools(words) == 0
    assert data_tools(["tokenizer", str(scenes / "train"), "--out", made.tokenizer(4), "--vocab", "300"]) == 0
    make_dictionary([str(scenes / "train")], Path(made.dictionary(4)), 64)
    start = tmp_path / "icons-contrast-4-0"
    assert run_ranks(begin, scenes, tmp_path, True).returncode == ExitCode.REQUEUE and reached(start) < 2
    for is_gone in (True, False):
        done = run_ranks(begin, scenes, tmp_path, False)
        assert done.returncode == 0, done.stderr
        assert ("whose run is gone" in done.stdout) is is_gone and reached(start) == 2


def record(arm: str, seed: int, foils: np.ndarray, share: int = 20) -> dict[str, Any]:
    packed = {"foils": pack(foils), "recall": pack(np.full(40, 0.5))}
    return {"cell": f"icons/{arm}/{share}/{seed}", "arm": arm, "share": share, "seed": seed, "units": packed}


def test_the_answer_waits_for_all_seeds_and_gives_the_direction() -> None:
    rng, records = np.random.default_rng(0), []
    for seed in range(10):
        for arm, mean in (("joint", 0.8), ("independent", 0.8), ("itc_itm", 0.6)):
            records.append(record(arm, seed, np.clip(mean + 0.05 * rng.normal(size=60), 0, 1)))
    size = plan.SIZES["small"]
    waiting = table.primary(records[:-1], size)
    assert "9 of itc_itm" in waiting and "better" not in waiting
    answers = [line.split("|")[-2].strip() for line in table.primary(records, size).splitlines()[2:]]
    assert answers == ["no difference shown", "no difference shown", "better", "no difference shown"]
    swapped = [r | {"arm": {"joint": "itc_itm", "itc_itm": "joint"}.get(r["arm"], r["arm"])} for r in records]
    assert [line.split("|")[-2].strip() for line in table.primary(swapped, size).splitlines()[2:]][2] == "worse"


def kept_icons() -> list[dict[str, Any]]:
    kept = campaign.RESULTS / "small" / "b71ea3c03a67" / campaign.CELLS
    records = map(json.loads, kept.read_text().splitlines())
    return [r for r in records if r["cell"].startswith("icons/") and "/rate" not in r["cell"]]


def test_the_answer_on_the_page_is_that_of_the_stored_cells() -> None:
    computed = [
        row.strip("| ").split(" | ") for row in table.primary(kept_icons(), plan.SIZES["small"]).splitlines()[2:]
    ]
    shown = [
        row.strip("| ").split(" | ") for row in PAGE.replace("−", "-").splitlines() if row.startswith("| joint - ")
    ]
    assert len(shown) == 4
    for (_, measure, difference, interval, *rest), page in zip(computed, shown, strict=True):
        wins, p, answer = rest[1], float(rest[-2]), rest[-1]
        assert (measure, float(difference), interval, answer) == (page[1], float(page[2]), page[3], page[6])
        assert page[4].removesuffix(" seeds") == wins and (float(page[5].strip("< ")) == p or p < 0.001)


def test_the_grid_on_the_page_is_that_of_the_stored_cells() -> None:
    unsigned = table.contrasts(kept_icons()).replace("+0.0", "0.0").replace("-0.0", "0.0")
    rows = [row.split(" | ") for row in unsigned.splitlines()[2:]]
    computed = [f"{difference} ({interval}), {wins.strip(' |')}" for _, _, difference, interval, _, wins in rows]
    lines = PAGE.replace("−", "-").splitlines()
    begins = next(place for place, line in enumerate(lines) if line.startswith("| joint, ahead of |")) + 2
    shown = [line.strip("| ").split(" | ")[2:] for line in lines[begins : begins + len(computed) // 3]]
    assert [row[share] for share in range(3) for row in shown] == computed


def test_no_score_is_shown_before_the_primary_cells_are_complete(tmp_path: Path) -> None:
    (tmp_path / campaign.COSTS).write_text("{}")
    size = replace(plan.SIZES["small"], primary_seeds=2, seeds=2)
    made = campaign.Campaign(size, tmp_path, tmp_path, tmp_path)
    for seed, arm in product((0, 1), ("joint", "itc_itm", "independent")):
        assert "foils" not in table.summary(made) and not (tmp_path / "curves.png").exists()
        about = record(arm, seed, np.array([0.5, 1.0, seed])) | {
            "numbers": {"foils": 0.75},
            "curve": [],
            "training_s": 9.0,
        }
        with (tmp_path / campaign.CELLS).open("a") as file:
            file.write(json.dumps(about) + "\n")
    assert "foils" in table.summary(made) and (tmp_path / "curves.png").exists()


def crossed(rng: np.random.Generator, mean: float, seeds: int, units: int) -> np.ndarray:
    """Scores that differ by seed, by unit and by both, in steps that a record stores exactly."""
    score = (
        mean + 0.03 * rng.normal(size=(seeds, 1)) + 0.1 * rng.normal(size=units) + 0.1 * rng.normal(size=(seeds, units))
    )
    return np.clip(np.round(255 * score), 0, 255) / 255


def student_tail(t: float, freedom: float) -> float:
    """P(|T| > t), by Simpson's rule on the density."""
    x = np.linspace(0, t, 20_001)
    log_c = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    y = np.exp(log_c - (freedom + 1) / 2 * np.log1p(x**2 / freedom))
    return 1 - 2 * float((y[0] + y[-1] + 4 * y[1:-1:2].sum() + 2 * y[2:-1:2].sum()) * (x[1] - x[0]) / 3)


def analysed(d: np.ndarray) -> tuple[float, float, float, float]:
    """Mean of differences [seeds, units], its interval and p, from the table of a two-way analysis of variance."""
    (seeds, units), m = d.shape, float(d.mean())
    square_s = sum(units * (float(d[s].mean()) - m) ** 2 for s in range(seeds)) / (seeds - 1)
    square_u = sum(seeds * (float(d[:, u].mean()) - m) ** 2 for u in range(units)) / (units - 1)
    whole = sum((float(d[s, u]) - m) ** 2 for s in range(seeds) for u in range(units))
    left = (seeds - 1) * (units - 1)
    square_r = (whole - square_s * (seeds - 1) - square_u * (units - 1)) / left
    variance = (square_s + square_u - square_r) / (seeds * units)
    assert variance > max(square_s, square_u) / (seeds * units)
    parts = square_s**2 / (seeds - 1) + square_u**2 / (units - 1) + square_r**2 / left
    freedom, error = variance**2 / (parts / (seeds * units) ** 2), math.sqrt(variance)
    low, high = 0.0, 100.0
    while high - low > 1e-9:  # the t that is exceeded once in twenty
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > 0.05 else (low, middle)
    return m, m - low * error, m + low * error, student_tail(abs(m) / error, freedom)


def stepped_down(p: list[float]) -> list[float]:
    """Holm's p by definition: the lowest level at which his procedure rejects each."""
    corrected = [1.0] * len(p)
    for level in np.linspace(1, 0, 10_001):
        for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
            if p[place] > level / (len(p) - rank):
                break
            corrected[place] = float(level)
    return corrected


@pytest.mark.parametrize(("seed_of_all", "answers"), [(5, [0, 0, 0, 0]), (9, [1, 0, 1, 0])])
def test_the_answer_is_that_of_an_analysis_of_variance_and_of_holms_procedure(
    seed_of_all: int, answers: list[int]
) -> None:
    """In the first case, one p is below 0.05 before the correction."""
    rng, records, scores = np.random.default_rng(seed_of_all), [], {}
    for arm, means in (("joint", (0.62, 0.5)), ("independent", (0.57, 0.49)), ("itc_itm", (0.55, 0.53))):
        scores[arm] = [crossed(rng, mean, 10, units) for mean, units in zip(means, (80, 60), strict=True)]
        for seed in range(10):
            packed = {name: pack(score[seed]) for name, score in zip(("foils", "recall"), scores[arm], strict=True)}
            records.append({"arm": arm, "share": 20, "seed": seed, "units": packed})
    expected = [
        analysed(mine - other)
        for control in ("independent", "itc_itm")
        for mine, other in zip(scores["joint"], scores[control], strict=True)
    ]
    corrected = stepped_down([p for *_, p in expected])
    lines = table.primary(records, plan.SIZES["small"]).splitlines()[2:]
    assert min(p for *_, p in expected) < 0.05 and [int(holms < 0.05) for holms in corrected] == answers
    for line, (mean, low, high, p), holms in zip(lines, expected, corrected, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found = [float(cells[2]), *map(float, cells[3].split(" to "))]
        assert found == pytest.approx([100 * mean, 100 * low, 100 * high], abs=0.051)
        assert (float(cells[6]), float(cells[8])) == pytest.approx((p, holms), abs=7e-4)
        assert cells[9] == ("no difference shown" if holms >= 0.05 else "better" if mean > 0 else "worse")


def test_curves_have_the_interval_over_seeds() -> None:
    cells = [{"curve": [{"foils": 0.5 + seed / 100}, {"foils": 0.6 + seed / 50}]} for seed in (0, 1, 2)]
    at, mean, reach = table.curve(cells, "foils")
    assert at == pytest.approx([1 / 6, 2 / 6]) and mean == pytest.approx([51, 62])
    assert reach == pytest.approx([4.3027 / 3**0.5, 4.3027 * 2 / 3**0.5], rel=1e-4)
    assert table.curve(cells[:2], "foils")[2].tolist() == [0, 0]
    assert [len(each) for each in table.curve([], "foils")] == [0, 0, 0]


def test_the_budget_on_a_gpu_is_that_of_the_page() -> None:
    """Updates counted cell by cell, and the figures on the page."""
    size = plan.SIZES["gpu"]
    found = budget.budget(size)
    icons = sum(350 if cell.rate else 700 for cell in (*plan.rate_cells(), *plan.grid(size)))
    scenes = len(plan.ARMS) * 5 * (400 + 133)
    assert (found.updates, found.cells) == (icons + 21 * 350 + scenes, 15 + 90 + 21 + 50)
    assert found.left_s == pytest.approx(1500 - 15 * 176 / 8)
    assert found.update_s * found.updates == pytest.approx(found.left_s)
    for figure in (f"{found.updates:,} updates", f"{found.products_s:,.0f} s", f"{found.left_s:,.0f} s"):
        assert figure in PAGE, figure
    assert f"{1000 * found.update_s:.0f} ms" in PAGE and f"{found.mfu:.1%}".replace("%", " %") in PAGE


def test_a_unit_has_the_same_weight_whatever_its_number_of_rows() -> None:
    assert by_unit(np.array([1.0, 0.0, 0.0, 1.0]), np.array([7, 7, 7, 9])) == pytest.approx([1 / 3, 1.0])


def test_uncommitted_code_is_refused_and_results_are_not_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    results = tmp_path / "benchmarks/claim2/results/small"
    code, page = tmp_path / "mvlm/code.py", tmp_path / "docs/claim2.md"
    for file in (code, page, tmp_path / "data_tools/a", tmp_path / "ds_configs/a", tmp_path / "benchmarks/a"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n")
    me = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *me, *words], check=True, capture_output=True)

    with pytest.raises(UserError, match="run this from a checkout"):
        campaign.code_commit(results)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    commit = campaign.code_commit(results)
    (results / commit).mkdir(parents=True)
    (results / commit / "cells.jsonl").write_text("{}\n")
    git("add", ".")
    git("commit", "-qm", "results")
    assert campaign.code_commit(results) == commit
    page.write_text("another plan\n")
    with pytest.raises(UserError, match=r"docs/claim2\.md is not as it was committed"):
        campaign.code_commit(results)
    git("commit", "-qam", "another plan")
    assert campaign.code_commit(results) != commit
    (tmp_path / "mvlm/new.py").write_text("\n")
    with pytest.raises(UserError, match=r"mvlm/new\.py is not as it was committed"):
        campaign.code_commit(results)


def test_colour_words_are_found_at_their_places_in_the_caption() -> None:
    caption = "red circle top left, blue star bottom right"
    found = list(grounding.colours(caption))
    assert found == [("red", 0, 0), ("blue", 21, 3)]
    assert [caption[at : at + len(word)] for word, at, _ in found] == ["red", "blue"]


def test_a_false_caption_shows_whether_words_follow_the_picture_or_the_sentence() -> None:
    captions = ["red circle top left, blue star top right", "blue circle top left, red star top right"]
    dataset: Any = SimpleNamespace(captions=captions)
    hits: dict[str, list[bool]] = {"grounded": [], "grounded_picture": [], "grounded_sentence": []}
    grounding._note(hits, dataset, 0, 0, [0, 3])
    grounding._note(hits, dataset, 0, 1, [1, 1])  # blue follows the picture, red the sentence
    assert hits == {
        "grounded": [True, False],
        "grounded_picture": [True, False],
        "grounded_sentence": [False, True],
    }
