"""Training a tokenizer on the texts of corpora, and loading and saving any tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from made import run
from tokenizers import Tokenizer, models
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


def test_each_word_of_the_scenes_is_one_token_between_special_tokens(trained: Path) -> None:
    tokenizer = load_tokenizer(str(trained))
    for word in WORDS:
        first, *middle, last = tokenizer(word).input_ids
        assert (first, last) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert len(middle) == 1
    text = "Red circle, ünïcode 🦊"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


def test_special_tokens_are_in_the_order_of_roberta(trained: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(trained))
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert len(tokenizer) <= 400


def test_composed_and_decomposed_letters_give_the_same_tokens(trained: Path) -> None:
    tokenizer = load_tokenizer(str(trained))
    assert tokenizer("cafe\u0301").input_ids == tokenizer("caf\u00e9").input_ids


def test_training_is_deterministic(tmp_path: Path, trained: Path) -> None:
    run("tokenizer", trained.parent / "shapes", "--out", tmp_path / "again.json", "--vocab", 400)
    assert (tmp_path / "again.json").read_bytes() == trained.read_bytes()


def test_a_saved_tokenizer_is_the_same_when_loaded(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a red star", "a red fox", "a fox"], 300)
    save_tokenizer(tokenizer, tmp_path / "saved")
    loaded = load_tokenizer(str(tmp_path / "saved"))
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded("a red <mask> fox").input_ids == tokenizer("a red <mask> fox").input_ids
    (tmp_path / "bare").mkdir()
    os.rename(tmp_path / "saved/tokenizer.json", tmp_path / "bare/tokenizer.json")
    assert load_tokenizer(str(tmp_path / "bare")).mask_token_id == tokenizer.mask_token_id


def test_a_tokenizer_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "not.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "not.json", tmp_path / "empty", tmp_path / "gone/there.json"):
        with pytest.raises(UserError, match="mvlm-data tokenizer") as raised:
            load_tokenizer(str(path))
        assert "\n" not in str(raised.value)


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    model = models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "a": 3}, unk_token="a")
    Tokenizer(model).save(str(tmp_path / "t.json"))
    with pytest.raises(UserError, match="no mask token"):
        load_tokenizer(str(tmp_path / "t.json"))


def test_mistakes_in_the_command_are_one_sentence(tmp_path: Path, trained: Path, fails: Callable[..., str]) -> None:
    shapes = trained.parent / "shapes"
    assert "too small" in fails("tokenizer", shapes, "--out", tmp_path / "t.json", "--vocab", 100)
    assert "exists already" in fails("tokenizer", shapes, "--out", trained)
    assert "does not exist" in fails("tokenizer", tmp_path / "nowhere", "--out", tmp_path / "t.json")


def test_tokenizers_are_trained_on_questions_and_statements_too(tmp_path: Path) -> None:
    for task in ("vqa", "pairs", "caption"):
        run("synth", "--task", task, "--count", 200, "--out", tmp_path / task)
    corpora = [tmp_path / task for task in ("vqa", "pairs", "caption")]
    run("tokenizer", *corpora, "--out", tmp_path / "tokenizer.json", "--vocab", 500)
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    for word in ("many", "different"):  # in questions and in statements, but in no caption
        assert len(tokenizer(word).input_ids) == 3
