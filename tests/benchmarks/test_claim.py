"""The campaign of docs/claim.md: its statistics against closed forms and simulation, its grid, world and real cells."""

from __future__ import annotations

import json
import subprocess
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import kept
from benchmarks.claim import cell as cells
from benchmarks.claim import grid, plots, world
from benchmarks.claim.__main__ import main as claim
from benchmarks.claim.corpora import Corpus, prepare
from benchmarks.claim.cost import gpu_hours
from benchmarks.claim.measured import Measured
from benchmarks.claim.paired import compare, crossed_variance, sign_flips, student_cumulative, student_quantile
from benchmarks.claim.scores import _differing, pack, unpack
from benchmarks.claim.table import PAGE, into_page, tables
from mvlm.config.load import load_config
from mvlm.data.samples.captions import CaptionTokenizer
from mvlm.data.samples.tokenizer import train_tokenizer
from mvlm.errors import UserError
from tests.conftest import ROOT
from tests.training.conftest import one_rank  # noqa: F401 - a fixture

# Quantiles of Student's t at 0.975, from printed tables.
TABLE = {1: 12.706, 2: 4.303, 4: 2.776, 10: 2.228, 30: 2.042, 1000: 1.962}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_of_students_t_are_those_of_printed_tables(freedom: int) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(TABLE[freedom], abs=6e-4 * TABLE[freedom])
    assert student_cumulative(TABLE[freedom], freedom) == pytest.approx(0.975, abs=1e-4)
    assert student_cumulative(-1.0, 2) == pytest.approx(0.5 - 0.5 / 3**0.5, abs=1e-6)  # closed form


def test_sign_flips_are_counted_as_by_enumeration() -> None:
    values = np.array([0.4, 0.1, -0.2, 0.3, 0.25])
    every = [abs(float(np.dot(signs, values))) for signs in product((1, -1), repeat=5)]
    assert sign_flips(values) == pytest.approx(np.mean([one >= every[0] - 1e-9 for one in every]))
    assert sign_flips(np.ones(5)) == 2 / 32
    assert sign_flips(np.zeros(5)) == 1


def test_a_single_row_gives_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    treatment, control = rng.normal(size=(6, 1)), rng.normal(size=(6, 1))
    found, d = compare(treatment, control), (treatment - control)[:, 0]
    error = d.std(ddof=1) / 6**0.5
    assert (found.low, found.high) == pytest.approx((d.mean() - 2.5706 * error, d.mean() + 2.5706 * error), rel=1e-4)
    assert found.effect == pytest.approx(d.mean() / d.std(ddof=1))
    assert found.wins == (d > 0).sum()


def test_equal_seeds_have_no_effect_size() -> None:
    found = compare(np.ones((3, 4)), np.ones((3, 4)))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert np.isnan(found.effect)


def test_the_crossed_variance_is_unbiased() -> None:
    rng, deviations, draws = np.random.default_rng(2), (0.5, 1.0, 2.0), 3000
    truth = deviations[0] ** 2 / 4 + deviations[1] ** 2 / 9 + deviations[2] ** 2 / 36
    found = [crossed_variance(_crossed(rng, *deviations, (4, 9)))[0] for _ in range(draws)]
    assert np.mean(found) == pytest.approx(truth, rel=0.12)  # clipped from below: a little above


@pytest.mark.parametrize("deviations", [(1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (0.3, 0.5, 1.0)])
def test_under_the_null_hypothesis_one_in_twenty_is_called_a_difference(deviations: tuple[float, float, float]) -> None:
    """This is also the interval's coverage: it excludes 0 exactly if p is below 0.05."""
    rng, draws = np.random.default_rng(3), 800
    found = [compare(_crossed(rng, *deviations, (5, 60)), np.zeros((5, 60))) for _ in range(draws)]
    wrong = np.mean([one.p < 0.05 for one in found])
    assert 0.015 < wrong < 0.075  # 0.05 with three standard errors and some margin
    assert all((one.p < 0.05) == (one.low > 0 or one.high < 0) for one in found)


def test_a_test_over_seeds_alone_is_overconfident_if_rows_differ() -> None:
    """Why both are needed: rows shared by all seeds do not show in the spread over seeds."""
    rng = np.random.default_rng(4)
    found = [
        compare(_crossed(rng, 0.0, 1.0, 1.0, (5, 60)).mean(1, keepdims=True), np.zeros((5, 1))) for _ in range(400)
    ]
    assert np.mean([one.p < 0.05 for one in found]) > 0.15


def _crossed(rng: np.random.Generator, seed: float, row: float, rest: float, shape: tuple[int, int]) -> np.ndarray:
    seeds, rows = shape
    of_seed, of_row = seed * rng.normal(size=(seeds, 1)), row * rng.normal(size=(1, rows))
    return of_seed + of_row + rest * rng.normal(size=shape)


def test_packed_scores_are_exact_to_half_a_step() -> None:
    score_N = np.random.default_rng(0).random(300)
    assert np.abs(unpack(pack(score_N)) - score_N).max() <= 0.5 / 255 + 1e-9
    assert unpack(pack(np.array([0.0, 0.5, 1.0])))[[0, 2]].tolist() == [0, 1]


def test_rounds_are_complete_and_the_core_comes_first() -> None:
    corpora, seeds = ["scenes", "emoji"], [0, 1, 2]
    night, core = grid.night(corpora, seeds), grid.core(corpora, seeds)
    a_round = len(night) // 3
    assert [cell.seed for cell in night] == [seed for seed in seeds for _ in range(a_round)]
    assert night[:8] == core[:8]
    assert len(set(night)) == len(night)
    assert len(core) == 2 * 2 * 2 * 3
    contrasts = [contrast for corpus in corpora for contrast in grid.contrasts(corpus)]
    asked = {cell for contrast in contrasts for cell in (contrast.treatment, contrast.control)}
    offered = set(grid.night(corpora, [0], list(grid.TUNES)))
    assert {cell for cell in asked if (cell.corpus, cell.tune) != ("emoji", "vqa")} <= offered


@pytest.mark.campaign
def test_the_page_lists_the_cells_and_the_cost_of_the_papers_runs() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for name, overrides in grid.OBJECTIVES.items():
        row = next(row for row in rows if f"`{name}`" in row.split("|")[1])
        for override in overrides:
            key, _, value = override.partition("=")
            assert key in row and value in row
    costs = gpu_hours(312, 0.4).splitlines()
    assert sum(row in costs for row in rows) == 7
    assert into_page(page, "new\nlines").count("new\nlines") == 1
    with pytest.raises(UserError, match="put both back"):
        into_page(page.replace("<!-- end of measured -->", ""), "")


def test_cells_are_selected_by_prefixes_of_their_names() -> None:
    night = grid.night(["scenes"], [0, 1])
    assert {cell.name for cell in grid.matching(night, ["scenes/all/10"])} == {"scenes/all/10/0", "scenes/all/10/1"}
    assert {cell.name for cell in grid.matching(night, ["scenes/all/10/1"])} == {"scenes/all/10/1"}
    assert grid.matching(night, ["scenes/al"]) == []


def test_the_world_is_complete_and_foils_only_exchange_words() -> None:
    scenes = world.scenes()
    assert len(scenes) == len(set(scenes)) == 6 * 9**2 + 4 * 9**3
    keys = {record.key for record in world.captioned()}
    held_out = set(sorted(keys)[::3])
    foils = list(world.foils(held_out))
    assert len(foils) > 100
    for first, second in zip(foils[::2], foils[1::2], strict=True):
        caption, foil = first.columns["caption"], first.columns["foil"]
        assert (foil, caption) == (second.columns["caption"], second.columns["foil"])
        assert sorted(caption.replace(",", "").split()) == sorted(foil.replace(",", "").split())
        assert caption != foil and first.image != second.image


def test_words_that_a_foil_exchanges_are_found() -> None:
    captions = ["red circle top left, blue star top right", "red star top left, blue circle top right"]
    tokens = CaptionTokenizer(train_tokenizer(captions, 300), 30)
    dataset: Any = SimpleNamespace(captions=captions, tokens=tokens)
    for index, words in ((0, "circlestar"), (1, "starcircle")):
        spans = [tokens.spans(captions[index])[place] for place in _differing(dataset, index)]
        assert "".join(captions[index][first:last] for first, last in spans).replace(" ", "") == words


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [
        ("../x", "shards", "a name has letters"),
        ("emoji", "shards", "the name of bundled data"),
        ("foils", "shards", "the name of bundled data"),
        ("mine", "", "is not bundled"),
    ],
)
def test_a_corpus_of_an_unsuitable_name_is_refused(tmp_path: Path, name: str, source: str, says: str) -> None:
    with pytest.raises(UserError, match=f"--corpus {name}.* {says}"):
        prepare(name, source, tmp_path)


def test_a_name_stands_for_a_single_corpus(tmp_path: Path, scenes: Path) -> None:
    first = prepare("mine", str(scenes / "train"), tmp_path)
    assert prepare("mine", str(scenes / "train"), tmp_path) == first
    with pytest.raises(UserError, match=r"choose another name for .*, or delete"):
        prepare("mine", str(scenes / "eval"), tmp_path)


def test_a_cell_is_claimed_by_one_process(tmp_path: Path) -> None:
    cell, corpus = grid.Cell("scenes", "all", seed=0), Corpus("scenes", tmp_path)
    planned = cells.Plan(cell, cells.SIZES["small"], corpus, tmp_path / "small/scenes-all-100-0", (), "")
    with cells.claimed(planned.run) as mine, cells.claimed(planned.run) as twice:
        assert mine and not twice
    with cells.claimed(planned.run) as again:
        assert again


def test_the_time_of_a_run_is_summed_over_its_attempts(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[train]\nglobal_batch = 64\n")
    lines = [{"step": 50, "pairs_per_s": 64.0}, {"step": 60, "eval/recall": 0.5}, {"step": 80, "pairs_per_s": 128.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cells.training_seconds(tmp_path) == 50 * 64 / 64 + 30 * 64 / 128


def test_the_version_of_the_code_does_not_change_with_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    assert kept.code_version() == "unknown"
    code, results, page = (
        tmp_path / name for name in ("code.py", "benchmarks/claim/results/cells.jsonl", "benchmarks/claim/README.md")
    )
    results.parent.mkdir(parents=True)
    for file in (code, results, page):
        file.write_text("\n")
    me = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "."), (*me, "commit", "-q", "-m", "one")):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    commit = kept.code_version()
    assert set(commit) <= set("0123456789abcdef")
    results.write_text("{}\n")
    page.write_text("a table\n")
    assert kept.code_version() == commit
    code.write_text("1\n")
    assert kept.code_version() == f"{commit}-dirty"


def made_record(kind: str, seed: int, score_N: np.ndarray) -> kept.Record:
    numbers = {"foils": float(score_N.mean()), "foils_itm": float(score_N.mean()), "pixels_right": 0.25}
    facts = {"cell": kind, "seed": seed, "size": "small", "pairs": 100, "steps": 5, "settings": "x"}
    return {**facts, "numbers": numbers, "rows": {"foils": pack(score_N)}}


def test_tables_compare_cells() -> None:
    rng = np.random.default_rng(0)
    records = []
    for seed in range(4):
        easy_N = rng.random(200)
        records.append(made_record("scenes/all/100", seed, (easy_N < 0.8).astype(float)))
        records.append(made_record("scenes/itc_itm/100", seed, (easy_N < 0.6).astype(float)))
    records.append(made_record("scenes/itc_itm/10", 0, np.zeros(200)))
    measured = Measured.of(records, "small")
    found = measured.compare(grid.contrasts("scenes")[0], "foils")
    assert found and found.difference == pytest.approx(0.2, abs=0.05) and found.wins == 4 and found.p < 0.01
    text = tables(measured)
    assert "`scenes/all/100` | 4 | 100 | 5 |" in text
    assert "4 of 4" in text and "0.125" in text  # the smallest p that the signs of four seeds can give
    assert measured.compare(grid.contrasts("scenes")[1], "foils") is None


TINY = [
    "model.vision_args={patch_size=16, embed_dim=32, depth=1, num_heads=2}",
    "model.text_args={hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, "
    "max_position_embeddings=64}",
    "model.cross_depth=1",
    "model.cross_heads=2",
    "model.contrastive_width=16",
    "objectives.itm_group=4",
    "data.workers=0",
    "train.steps=3",
    "optim.warmup_steps=1",
    "train.global_batch=16",
    "eval.limit=32",
]


def test_pictures_are_reconstructed_by_a_run_that_still_exists(trained: Path, scenes: Path) -> None:
    strip = plots._restored(trained, scenes / "eval")
    assert strip.shape == (36, 4 * plots.SHOWN * 36, 3) and strip.dtype == np.uint8


@pytest.mark.campaign
def test_cells_are_run_once_and_can_be_plotted(
    one_rank: None,  # noqa: F811
    own_signals: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results/cells.jsonl"
    words = ["run", "--corpus", "scenes", "--seeds", "0", "--tune", "vqa", "--set", *TINY]
    words += ["--folder", str(tmp_path), "--results", str(results)]
    asked = ["scenes/all/10/0", "scenes/masked_only/100/0", "scenes/albef/10/compute/0", "scenes/itc_itm/100/vqa"]
    assert claim([*words, "--only", asked[0]]) == 0
    first = results.read_text()
    assert claim([*words, "--only", *asked]) == 0
    assert results.read_text().startswith(first)
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [record["cell"] for record in records] == [name.removesuffix("/0") for name in asked]
    four, masked, albef, answers = records
    assert albef["steps"] > four["steps"] == 3
    assert {"foils_itm", "foils_words", "recall_reranked", "pixels_none"} <= four["numbers"].keys()
    assert len(unpack(four["rows"]["recall"])) == 32
    assert all(record["training_s"] > 0 for record in records)
    assert "recall" not in masked["numbers"] and "words_wrong" in masked["numbers"]
    assert answers["rows"].keys() == {"answers"} and answers["steps"] == 2
    corpus = prepare("scenes", "", tmp_path / "corpora")
    at_compute = grid.Cell("scenes", "albef", 10, grid.COMPUTE, "vqa")
    planned = cells.plan(at_compute, cells.SIZES["small"], corpus, tmp_path, (*TINY, "train.steps=30"))
    assert planned.base and load_config(planned.base.toml, planned.base.words).train.steps > 33
    assert load_config(planned.toml, planned.words).train.steps == 10
    results.write_text(first)  # as if killed between training and measuring the others
    trained = {run: run.read_text() for run in (tmp_path / "small").glob("*/metrics.jsonl")}
    assert claim([*words, "--only", asked[1]]) == 0
    assert json.loads(results.read_text().splitlines()[1])["numbers"] == masked["numbers"]
    assert {run: run.read_text() for run in trained} == trained
    assert claim(["table", "--folder", str(tmp_path), "--results", str(results)]) == 0
    assert "| `scenes/all/10` | 1 |" in capsys.readouterr().out
    assert (results.parent / "reconstructions-small.png").stat().st_size > 1000


def test_the_ablation_configurations_are_base_with_the_overrides_of_the_grid() -> None:
    """No file may drift from the recipe or from the grid's cell of its name."""
    configs = ROOT / "mvlm/configs"
    files = {path.stem: path for path in (configs / "ablation").glob("*.toml")}
    assert set(files) == {*grid.ABLATION, *grid.MASKING, *grid.PAPERS_OWN, "image_50", "image_70", "text_15"}
    place = ['data.train=["shards/coco_train", "shards/cc3m_halves/half"]', "train.epochs=30"]
    rows = grid.OBJECTIVES | grid.PAPERS_OWN
    for name, path in files.items():
        wanted = load_config(configs / "base.toml", [*place, f"run.dir=runs/paper/{name}", *rows[name]])
        assert load_config(path) == wanted, name
    corpora = 'data.train=["shards/coco_train", "shards/vg", "shards/cc3m", "shards/sbu"]'
    whole = load_config(configs / "base.toml", [corpora, "run.dir=runs/paper/base_4m"])
    assert load_config(configs / "base_4m.toml") == whole
