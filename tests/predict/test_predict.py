"""Predictions about a user's own pictures, against the model called directly."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mvlm.__main__ import main
from mvlm.errors import UserError
from mvlm.evaluate.retrieval import SearchSettings
from mvlm.predict.attention import token_attention, word_attention
from mvlm.predict.patches import Patches
from mvlm.predict.prediction import Asked, pair_up, printable
from mvlm.predict.search import CAPTIONS, IMAGES
from mvlm.predict.words import Words
from tests.evaluate.tiny import CONFIG
from tests.export.conftest import write_run
from tests.predict.conftest import SENTENCES

CPU = torch.device("cpu")
SEARCH = SearchSettings(batch=3, rerank=4, memory_gb=1.0)


@torch.no_grad()
def every_pair(model, pictures):
    """Cosine and probability of a match, images x sentences, each pair computed alone."""
    similarity, match = (np.zeros((len(pictures), len(pictures.captions))) for _ in range(2))
    for i in range(len(pictures)):
        image = model.encode_image(pictures.images([i]))
        for c in range(len(pictures.captions)):
            text, valid = pictures.texts([c])
            words = model.encode_text(text, valid)
            similarity[i, c] = (model.project_image(image) * model.project_text(words)).sum()
            match[i, c] = model.match(image, words, valid)[0].softmax(-1)[1]
    return similarity, match


def expected(similarity_A, match_A, temperature, top):
    """The best four by similarity, re-ranked by similarity and log-odds of a match, and then the rest."""
    order = np.argsort(-similarity_A, kind="stable").tolist()
    score_A = np.log(match_A / (1 - match_A)) + similarity_A / temperature
    return (sorted(order[:4], key=lambda item: -score_A[item]) + order[4:])[:top]


@pytest.mark.parametrize("kind", [CAPTIONS, IMAGES])
def test_the_best_answers_are_those_of_scoring_every_pair(loaded, files, pictures, kind):
    similarity, match = every_pair(loaded.model, pictures)
    answer = kind.run(loaded, Asked(files, tuple(SENTENCES), 6, SEARCH, draws=False), CPU)
    if kind.name == "images":
        similarity, match, items = similarity.T, match.T, [str(path) for path in files]
    else:
        items = SENTENCES
    assert len(answer.entries) == len(similarity)
    for query, entry in enumerate(answer.entries):
        shown = entry["sentences" if kind.name == "captions" else "images"]
        order = expected(similarity[query], match[query], loaded.model.temperature().item(), 6)
        assert [each["sentence" if kind.name == "captions" else "image"] for each in shown] == [items[i] for i in order]
        for place, (each, item) in enumerate(zip(shown, order, strict=True)):
            assert each["similarity"] == pytest.approx(similarity[query, item], abs=1e-5)
            assert each["match"] == (pytest.approx(match[query, item], abs=1e-5) if place < 4 else None)


def test_masked_words_are_the_models_guesses(loaded, files, pictures):
    sentence, model = "a [MASK] dog a [MASK]", loaded.model
    (entry,) = Words().run(loaded, Asked(files[:1], (sentence,), 3, SEARCH, draws=False), CPU).entries
    text, valid = pictures.tokens.batch([sentence.replace("[MASK]", "<mask>")])
    grey = torch.full((1, 3, 16, 16), 128, dtype=torch.uint8)
    for name, image in (("with_image", pictures.images([0])), ("without_image", grey)):
        with torch.no_grad():
            fused = model.fuse_text(model.encode_text(text, valid), model.encode_image(image), valid)
            probability = model.reconstruct_text(fused).softmax(-1)[text == pictures.tokens.mask_id]
        assert len(entry[name]) == 2
        for row, guesses in zip(probability, entry[name], strict=True):
            assert [each["probability"] for each in guesses] == pytest.approx(
                row.sort(descending=True).values[:3].tolist(), rel=1e-5
            )
    first, second = (guesses[0]["word"] for guesses in entry["with_image"])
    assert entry["filled"] == f"a {first} dog a {second}"
    assert entry["with_image"] != entry["without_image"]


def test_attention_is_the_softmax_of_queries_and_keys(loaded, pictures):
    """One block, computed from its weights in numpy in float64."""
    model, weights = loaded.model, {name: p.detach().double().numpy() for name, p in loaded.model.named_parameters()}
    text, valid = pictures.texts([5])
    with torch.no_grad():
        image, words = model.encode_image(pictures.images([2])), model.encode_text(text, valid)
        block, seen = model.cross_text.blocks[0], []
        hook = block.cross_norm.register_forward_hook(lambda _, __, output: seen.append(output))
        got = token_attention(model, image, words, valid)[0].numpy()
        hook.remove()
    prefix, width = "cross_text.blocks.0.cross_attention", words.shape[-1]
    query = seen[0][0].double().numpy() @ weights[f"{prefix}.query.weight"].T + weights[f"{prefix}.query.bias"]
    key_weight, key_bias = (weights[f"{prefix}.key_value.{part}"][:width] for part in ("weight", "bias"))
    key = image[0].double().numpy() @ key_weight.T + key_bias
    shares = []
    for head in np.split(np.arange(width), 2):
        score = np.exp(query[:, head] @ key[:, head].T / np.sqrt(len(head)))
        shares.append(score / score.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(got, np.mean(shares, axis=0)[:, 1:], rtol=1e-4, atol=1e-6)


def test_the_attention_of_a_word_is_the_mean_over_its_tokens(loaded, pictures):
    sentence = "something blue"
    text, valid = pictures.tokens.batch([sentence])
    with torch.no_grad():
        share = token_attention(
            loaded.model, loaded.model.encode_image(pictures.images([0])), loaded.model.encode_text(text, valid), valid
        )[0]
    spans = pictures.tokens.spans(sentence)
    blue = [i for i, (first, last) in enumerate(spans) if last > 10]
    (first, _), (second, map_RC) = word_attention(loaded.model, pictures, 0, sentence, CPU)
    assert (first, second) == ("something", "blue")
    torch.testing.assert_close(map_RC.flatten(), share[blue].mean(dim=0))


def test_patches_are_reconstructed_with_and_without_the_sentence(loaded, files):
    asked = Asked(files, ("a red dog",), 1, SEARCH, draws=True)
    answer = Patches().run(loaded, asked, CPU)
    assert len(answer.entries) == len(answer.pictures) == len(files)
    assert all(entry["l1_with"] != entry["l1_without"] for entry in answer.entries)
    strip = np.asarray(next(iter(answer.pictures.values())))
    tiles = [strip[:224, start : start + 224] for start in range(0, 4 * 230, 230)]
    hidden = (tiles[1] == 127).all(axis=2)
    assert 0 < hidden.mean() < 1
    for restored in tiles[2:]:
        np.testing.assert_array_equal(restored[~hidden], tiles[0][~hidden])
        assert (restored[hidden] != tiles[0][hidden]).any()


def test_images_and_sentences_are_paired_up(files):
    assert pair_up(files, ["x"]) == (list(files), ["x"] * 4)
    assert pair_up(files[:1], ["x", "y"]) == ([files[0]] * 2, ["x", "y"])
    assert pair_up(files[:1], ["x"]) == ([files[0]], ["x"])
    with pytest.raises(UserError, match="4 images and 2 sentences cannot be paired"):
        pair_up(files, ("x", "y"))
    with pytest.raises(UserError, match="0 images and 0 sentences cannot be paired"):
        pair_up([], [])


def test_a_file_name_that_is_not_utf_8_survives_in_the_answers(tmp_path, files):
    """Old disks have such names."""
    run, named = write_run(tmp_path / "run", CONFIG), tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(files[0], named)
    words = ["predict", "captions", "--checkpoint", run, "--images", named, "--sentences", "a cat"]
    assert main([*map(str, words), "--json", str(tmp_path / "best.json")]) == 0
    (answer,) = json.loads((tmp_path / "best.json").read_text(encoding="utf-8"))["answers"]
    assert answer["image"] == str(named)


def test_a_run_warns_of_predictions_it_was_not_trained_for(tmp_path, files, capsys):
    alone = dataclasses.replace(CONFIG.objectives, image=0.0, text=0.0)
    run = write_run(tmp_path / "run", dataclasses.replace(CONFIG, objectives=alone))

    def warned(what, sentence):
        words = ["predict", what, "--checkpoint", run, "--images", files[0], "--sentences", sentence]
        assert main(list(map(str, words))) == 0
        return capsys.readouterr().err

    assert "know nothing about filling in words: its last updates were made without" in warned("words", "a [MASK]")
    assert "know nothing about reconstructing images" in warned("patches", "a cat")
    assert warned("captions", "a cat") == ""


def test_hostile_pictures_and_sentences_are_refused_in_one_sentence(loaded, files, tmp_path):
    def mistake(kind, image=files[0], sentence="a dog"):
        with pytest.raises(UserError) as error:
            kind.run(loaded, Asked((image,), (sentence,), 1, SEARCH, draws=False), CPU)
        assert "\n" not in str(error.value)
        return str(error.value)

    cut, text = tmp_path / "cut.png", tmp_path / "text.jpg"
    cut.write_bytes(files[0].read_bytes()[:200])
    text.write_text("no picture")
    assert "cut.png is not a picture" in mistake(Patches(), cut)
    assert "text.jpg is not a picture" in mistake(CAPTIONS, text)
    assert "No picture at /dev/zero" in mistake(CAPTIONS, Path("/dev/zero"))
    assert "masks no word" in mistake(Words())
    assert "a mask of the tokenizer's own: write [MASK]" in mistake(Words(), sentence="a [MASK] <mask> dog")
    assert "0 are within the 12 tokens" in mistake(Words(), sentence="a cat " * 20 + "[MASK]")
    assert printable("a\x1b[2Jb\nc\u202e") == "a�[2Jb�c�"
    assert printable(family := "\N{MAN}\u200d\N{GIRL} نمی\u200cخواهم") == family  # joiners are part of the spelling


def test_truncated_sentences_cause_a_warning(tmp_path, files, capsys):
    run = write_run(tmp_path / "run", CONFIG)

    def warned(*sentences):
        words = ["predict", "captions", "--checkpoint", run, "--images", files[0], "--sentences", *sentences]
        assert main(list(map(str, words))) == 0
        return capsys.readouterr().err

    assert "This model reads 12 tokens of a text: 1 of 2 are longer, up to" in warned("a cat", "a cat " * 20)
    assert warned("a cat") == ""
