"""The paper's tables: the data that they need, published sizes, and dry runs."""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_tools.__main__ import main as data_tools
from data_tools.synth.miniature import write_miniature
from mvlm.__main__ import main as mvlm
from mvlm.config.load import load_config
from mvlm.errors import ExitCode, UserError
from mvlm.estimate.encoders import build_task_without_weights
from mvlm.model.flops import flop_counter
from mvlm.reproduce import layout
from mvlm.reproduce.corpora import CORPORA, in_order
from mvlm.reproduce.cost import CLASSES, Prices
from mvlm.reproduce.miniature import RECIPE, RECIPE_OF_FIRST
from mvlm.reproduce.runs import RUNS
from mvlm.reproduce.steps import GenerateStep, TrainStep, Workplace, published_pairs
from mvlm.reproduce.tables import TABLES
from mvlm.runtime.chain import execute, run_chain
from tests.conftest import ROOT
from tests.training.test_recipes import PAIRS, rows


def place(data: Path, out: Path, *overrides: str) -> Workplace:
    return Workplace(data, out, ("mvlm",), "ds_configs/zero1.json", overrides)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniature") / "data"
    write_miniature(folder)
    return folder


def ask(words: list[str]) -> str:
    said = io.StringIO()
    with redirect_stdout(said):
        assert data_tools(words[3:]) == 0
    return said.getvalue()


def test_the_commands_are_those_of_the_page_on_the_papers_data() -> None:
    page = (ROOT / "docs/paper_data.md").read_text(encoding="utf-8")
    written = [shlex.split(line)[3:] for line in page.splitlines() if line.startswith("python -m data_tools")]
    commands = {words[words.index("--out") + 1].removeprefix("shards/"): sorted(words) for words in written}
    for name, corpus in CORPORA.items():
        if name.endswith("_parts"):
            continue
        words = [
            word.format(shards="shards", data="") if "{shards}" in word else Path(word.format(data="")).name
            for word in corpus.words
        ]
        words = ["sbu" if word == "images" else word for word in words]
        assert sorted([*words, "--out", f"shards/{name}"]) == commands[name]


@pytest.mark.parametrize(
    "recipe", ["base_4m", "ablation/all", "retrieval_coco", "retrieval_flickr30k", "vqa", "nlvr2", "entailment"]
)
def test_published_sizes_give_the_updates_on_the_methods_page(recipe: str, tmp_path: Path) -> None:
    name = next(name for name, run in RUNS.items() if run.recipe == recipe)
    step = TrainStep(place(tmp_path, tmp_path), name)
    assert step.pairs() == PAIRS[recipe]
    assert f"{step.updates():,}" == rows()[recipe][3]


def test_smaller_shares_of_the_pairs_are_parts_of_larger_ones_with_as_many_updates(tmp_path: Path) -> None:
    shares = {share: TrainStep(place(tmp_path, tmp_path), f"all_{share}") for share in (50, 25, 10)}
    whole = TrainStep(place(tmp_path, tmp_path), "all")
    for share, step in shares.items():
        assert step.pairs() == pytest.approx(whole.pairs() * share / 100, abs=2)
        assert step.updates() == pytest.approx(whole.updates(), abs=2)
    parts = [set(RUNS[f"all_{share}"].data) for share in (10, 25, 50)]
    assert parts[0] < parts[1] < parts[2]
    assert published_pairs("cc3m_parts/p10") == 147_500


def test_every_recipe_accepts_its_settings(tmp_path: Path) -> None:
    for name, run in RUNS.items():
        step = TrainStep(place(tmp_path, tmp_path), name)
        config = load_config(step.recipe, step.settings())
        assert bool(config.data.eval) == bool(run.validation)
        small = load_config(step.recipe, [*step.settings(), *RECIPE, *RECIPE_OF_FIRST])
        assert small.objectives.image == config.objectives.image


def test_shards_are_found_in_a_folder_of_any_name(tmp_path: Path) -> None:
    step = TrainStep(place(tmp_path, tmp_path / "réhearsal 🦊"), "base_4m_nlvr2")
    data, shards = load_config(step.recipe, step.settings()).data, step.place.shards
    assert (data.train, data.eval) == ((str(shards / "nlvr2_train"),), (str(shards / "nlvr2_dev"),))


def test_each_epoch_is_validated_once(tmp_path: Path) -> None:
    for name, epochs in (("base_4m_coco", 5), ("base_4m_flickr30k", 10), ("base_4m_nlvr2", 10), ("base_4m_snli_ve", 5)):
        step = TrainStep(place(tmp_path, tmp_path), name)
        config = load_config(step.recipe, step.settings())
        every = config.eval.every
        assert len({*range(every, step.updates(), every), step.updates()}) == epochs
        assert config.checkpoint.every == config.checkpoint.keep_every == every


def test_a_seed_has_folders_and_a_table_of_its_own(tmp_path: Path) -> None:
    here = place(tmp_path, tmp_path, "run.seed=3")
    assert place(tmp_path, tmp_path).table("ablation") == tmp_path / "ablation.json"
    assert here.table("ablation") == tmp_path / "ablation-seed3.json"
    assert here.run("all") == tmp_path / "runs/all-seed3"
    assert f"checkpoint.init={here.run('all')}" in TrainStep(here, "all_flickr30k").words()


def test_data_sets_are_ordered_before_those_that_need_them() -> None:
    for table in TABLES.values():
        order = in_order(table.shards)
        assert len(order) == len(set(order))
        for name in order:
            assert all(order.index(need.partition("/")[0]) < order.index(name) for need in CORPORA[name].needs)


def test_a_dry_run_counts_the_data_and_names_missing_files(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, table = place(data, tmp_path), TABLES["vqa"]
    assert layout.missing(table, here) == []
    found = {each.name: each for each in layout.counted(table, here, ask)}
    assert (found["coco_train"].rows, found["coco_train"].pairs, found["coco_train"].published_pairs) == (
        80,
        400,
        566_747,
    )
    assert (found["cc3m"].rows, found["cc3m"].dropped) == (94, {"download failed (HTTP 404)": 2})
    assert (found["sbu"].rows, found["sbu"].dropped) == (15, {"image is missing": 1})
    assert (found["vqa_trainval"].rows, found["vqa_test_dev"].rows, found["vqa_test"].rows) == (108, 18, 36)
    assert found["vg_qa"].rows > 0 and found["vg"].pairs > 16

    gone = (data / "vqa/v2_OpenEnded_mscoco_test2015_questions.json").rename(tmp_path / "away")
    monkeypatch.setattr(layout, "ask", ask)
    monkeypatch.setattr("mvlm.cli.reproduce._prices", lambda *arguments: None)
    words = ["reproduce", "vqa", "--data", str(data), "--out", str(tmp_path)]
    assert mvlm([*words, "--dry-run"]) == 1
    said = capsys.readouterr().out
    assert f"missing: {data}/vqa/v2_OpenEnded_mscoco_test2015_questions.json" in said and "658,111" in said
    assert mvlm(words) == 1 and "--dry-run" in capsys.readouterr().err
    gone.rename(data / "vqa/v2_OpenEnded_mscoco_test2015_questions.json")


def test_shards_of_a_rehearsal_do_not_count_as_published_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "shards").mkdir(parents=True)
    words = ["reproduce", "nlvr2", "--out", str(out)]
    assert mvlm([*words, "--miniature"]) == 1
    assert f"{out} holds shards that are not in miniature" in capsys.readouterr().err
    (out / "data").mkdir()
    assert mvlm([*words, "--data", str(tmp_path)]) == 1
    assert f"{out} holds a rehearsal in miniature, which would count as done: give another" in capsys.readouterr().err
    assert mvlm([*words, "--data", str(out / "data")]) == 1 and "are missing" in capsys.readouterr().err


def test_one_folder_for_all_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "nlvr2", "--miniature", "--out", str(tmp_path / "out"), "run.dir=mine"]
    assert mvlm(words) == 1
    assert "run.dir=mine would be the folder of every run: give --out" in capsys.readouterr().err


def test_a_dry_run_in_miniature_does_not_miss_what_it_would_generate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mvlm(["reproduce", "nlvr2", "--miniature", "--dry-run", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "generate the data sets in miniature" in said and "missing" not in said


def test_a_miniature_is_always_the_same(data: Path, tmp_path: Path) -> None:
    write_miniature(tmp_path / "again")
    for path in sorted(file for file in data.rglob("*") if file.is_file()):
        assert (tmp_path / "again" / path.relative_to(data)).read_bytes() == path.read_bytes(), path


def test_a_preempted_step_can_be_resumed_and_a_failed_one_is_named(tmp_path: Path) -> None:
    step = GenerateStep(place(tmp_path / "data", tmp_path))
    assert run_chain([step], lambda words: ExitCode.REQUEUE) == ExitCode.REQUEUE
    with pytest.raises(UserError, match="'generate the data sets in miniature' failed with exit code 70"):
        run_chain([step], lambda words: ExitCode.BUG)
    with pytest.raises(UserError, match="is not done"):
        run_chain([step], lambda words: 0)


def test_a_missing_launcher_is_reported_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "nlvr2", "--miniature", "--out", str(tmp_path), "--launch"]
    with pytest.raises(SystemExit) as ended:
        mvlm([*words, "torchrun '"])
    assert ended.value.code == ExitCode.USAGE and "is not a command (No closing quotation)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no-launcher cannot be started here .*: give --launch"):
        execute(["no-launcher", "train"])


def test_the_list_names_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert mvlm(["reproduce", "list"]) == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"\b{name}\b", said) for name in TABLES)


def test_a_run_without_matching_has_a_cost(tmp_path: Path) -> None:
    step = TrainStep(replace(place(tmp_path, tmp_path), miniature=True), "itc")
    prices = Prices("a100", "zero1.json", {})
    hours = prices.gpu_hours(*step.tables, step.pairs())
    assert hours and prices.gpu_hours(*step.tables, 2 * step.pairs()) == pytest.approx(2 * hours, rel=1e-3)


@pytest.mark.parametrize(("name", "samples"), [("vqa", 9_144_888), ("nlvr2", 863_730), ("snli_ve", 2_647_635)])
def test_the_cost_of_fine_tuning_is_that_of_real_steps(tmp_path: Path, name: str, samples: int) -> None:
    """The samples are all published ones times 8, 10 or 5 epochs."""
    step = TrainStep(replace(place(tmp_path, tmp_path), miniature=True), f"base_4m_{name}")
    blueprint, data, optim, train = step.tables
    train, task = replace(train, epochs={"vqa": 8, "nlvr2": 10, "snli_ve": 5}[name]), blueprint.task
    model = build_task_without_weights(blueprint, data, CLASSES[task.name]).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    image_VBCHW = torch.zeros(task.images, 3, 3, 32, 32, dtype=torch.uint8)
    text_BL = torch.zeros(3, data.text_length, dtype=torch.int64)
    with flop_counter() as counter:
        model.logits(image_VBCHW, text_BL, torch.ones_like(text_BL, dtype=torch.bool)).sum().backward()
    prices = Prices("a100", "zero1.json", {"bf16": {"enabled": True}})
    hours = prices.gpu_hours(blueprint, data, optim, train, step.pairs())
    whole = samples // train.global_batch * train.global_batch
    assert hours == pytest.approx(whole * counter.get_total_flops() / 3 / (0.4 * 312e12) / 3600, rel=1e-4)
