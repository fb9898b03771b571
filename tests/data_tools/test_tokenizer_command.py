"""The tokenizer trained on a corpus's captions, and loading and saving of any."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from made import run
from transformers import PreTrainedTokenizerFast

from mvlm.data.samples.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from mvlm.errors import UserError

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
WORDS = (*COLOURS, "circle", "square", "triangle", "star", "top", "bottom", "left", "right")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    run("synth", "--task", "caption", "--count", 400, "--split", "train=0.8,eval=0.2", "--out", folder / "shapes")
    run("tokenizer", folder / "shapes", "--out", folder / "tokenizer.json", "--vocab", 400)
    return folder / "tokenizer.json"


def test_the_words_of_the_scenes_are_single_tokens_with_ends(trained: Path) -> None:
    tokenizer = load_tokenizer(str(trained))
    for word in WORDS:
        first, *middle, last = tokenizer(word).input_ids
        assert (first, last) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert len(middle) == 1
    text = "Red circle, ünïcode 🦊"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


def test_special_tokens_stand_in_robertas_order(trained: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(trained))
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert len(tokenizer) <= 400


def test_composed_and_decomposed_letters_are_one(trained: Path) -> None:
    tokenizer = load_tokenizer(str(trained))
    assert tokenizer("cafe\u0301").input_ids == tokenizer("caf\u00e9").input_ids


def test_training_is_deterministic(tmp_path: Path, trained: Path) -> None:
    run("tokenizer", trained.parent / "shapes", "--out", tmp_path / "again.json", "--vocab", 400)
    assert (tmp_path / "again.json").read_bytes() == trained.read_bytes()


def test_a_saved_tokenizer_loads_as_an_equal_one(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a red star", "a red fox", "a fox"], 300)
    save_tokenizer(tokenizer, tmp_path / "saved")
    loaded = load_tokenizer(str(tmp_path / "saved"))
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded("a red <mask> fox").input_ids == tokenizer("a red <mask> fox").input_ids
    (tmp_path / "bare").mkdir()
    os.rename(tmp_path / "saved/tokenizer.json", tmp_path / "bare/tokenizer.json")
    assert load_tokenizer(str(tmp_path / "bare")).mask_token_id == tokenizer.mask_token_id


def test_what_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "not.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for name in (tmp_path / "not.json", tmp_path / "empty", tmp_path / "gone/there.json"):
        with pytest.raises(UserError, match="mvlm-data tokenizer") as raised:
            load_tokenizer(str(name))
        assert "\n" not in str(raised.value)


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "a": 3}, unk_token="a")).save(str(tmp_path / "t.json"))
    with pytest.raises(UserError, match="no mask token"):
        load_tokenizer(str(tmp_path / "t.json"))


def test_mistakes_of_the_command(tmp_path: Path, trained: Path, fails: Callable[..., str]) -> None:
    shapes = trained.parent / "shapes"
    assert "too small" in fails("tokenizer", shapes, "--out", tmp_path / "t.json", "--vocab", 100)
    assert "exists already" in fails("tokenizer", shapes, "--out", trained)
    assert "does not exist" in fails("tokenizer", tmp_path / "nowhere", "--out", tmp_path / "t.json")


def test_questions_and_statements_are_texts_too(tmp_path: Path) -> None:
    for task in ("vqa", "pairs", "caption"):
        run("synth", "--task", task, "--count", 200, "--out", tmp_path / task)
    corpora = [tmp_path / task for task in ("vqa", "pairs", "caption")]
    run("tokenizer", *corpora, "--out", tmp_path / "tokenizer.json", "--vocab", 500)
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    for word in ("many", "different"):  # of questions and of statements; no caption has them
        assert len(tokenizer(word).input_ids) == 3
