"""From pictures to a model by one call, through the launcher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mvlm
from mvlm.api.corpus import find_shards, recognise
from mvlm.api.recipe import choose
from mvlm.config.load import load_config
from mvlm.errors import UserError
from tests.conftest import TINY


def write_pictures(scenes: Path, out: Path) -> None:
    """Scenes as people have pictures: with a text file beside each."""
    out.mkdir()
    for number, row in enumerate(mvlm.open(scenes / "train")[:80]):  # by keys that no split has been made by
        (out / f"{number}.png").write_bytes(row.encoded)
        (out / f"{number}.txt").write_text("\n".join(row.captions))


def test_one_call_trains_and_a_second_resumes(scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_pictures(scenes, tmp_path / "pictures")
    settings = {word.partition("=")[0]: word.partition("=")[2] for word in TINY}
    settings = {key: json.loads(value) for key, value in settings.items() if value[0] not in "{"}
    small = {"model.vision_args": {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}}
    run = mvlm.train(tmp_path / "pictures", tmp_path / "run", settings | small | {"train.steps": 2})
    said = capfd.readouterr().out
    assert "train.global_batch = 64" in said and "step 2 " in said
    assert run.report.is_file() and run.retrieval and run.retrieval["step"] == 2
    assert [line["step"] for line in run.metrics] == [1, 2]
    images, texts = run.load("cpu").encode([row.image for row in mvlm.open(run.folder / "shards/eval")], "a star")
    assert images is not None and len(images) == run.retrieval["images"] and texts is not None

    again = mvlm.train(tmp_path / "pictures", tmp_path / "run", settings | small | {"train.steps": 3})
    assert [line["step"] for line in again.metrics] == [1, 2, 3]
    assert "step 1 " not in capfd.readouterr().out


def test_a_wrong_setting_is_met_before_anything_is_launched(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.step.*train\.steps"):
        mvlm.train(scenes, tmp_path / "run", {"train.step": 3})


@pytest.mark.parametrize("images", [2, 500, 50_000, 5_000_000])
@pytest.mark.parametrize("gpus", [0, 8])
def test_the_chosen_recipe_is_a_sound_configuration(tmp_path: Path, images: int, gpus: int) -> None:
    chosen = choose(images, ["shards/train"], ["shards/eval"], tmp_path / "run", gpus)
    (tmp_path / "recipe.toml").write_text(chosen.text("A test."))
    config = load_config(tmp_path / "recipe.toml")
    assert config.data.train == ("shards/train",) and config.train.global_batch <= max(images, 2)
    assert config.train.epochs * images / config.train.global_batch >= 599


def test_forms_of_a_corpus_are_recognised(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json/captions.jsonl").touch()
    (tmp_path / "text").mkdir()
    for name in ("a.JPG", "a.txt"):
        (tmp_path / "text" / name).touch()
    (tmp_path / "parts").mkdir()
    for name in ("parts/0.parquet", "pairs.tsv", "one.parquet"):
        (tmp_path / name).touch()
    names = {"json": "folder", "text": "side_by_side", "parts": "hf", "pairs.tsv": "table", "one.parquet": "hf"}
    assert {name: recognise(tmp_path / name) for name in names} == names
    assert recognise(Path("examples/emoji.tar")) == "folder"
    for path, said in ((tmp_path / "nothing", "Nothing is at"), (Path("README.md"), "not recognised")):
        with pytest.raises(UserError, match=said):
            recognise(path)
    found = find_shards(scenes)
    assert found and found.train == (str(scenes / "train"),) and found.eval == (str(scenes / "eval"),)
    alone = find_shards(scenes / "eval")
    assert alone and alone.train == (str(scenes / "eval"),) and alone.eval == ()
