"""The answers that the page gets, against the model called directly."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from mvlm.data.samples.padding import BatchTokenizer
from mvlm.data.samples.spelling import spelled
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.evaluate.examples import paste, pictures_of
from mvlm.predict.words import blank_image, likeliest, mask_words

SENTENCE = "red circle top left"


def pixels(url):
    kind, _, content = url.partition(",")
    assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def ask(client, path, **question):
    response = client.post(f"/api/{path}", json=question)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_page_learns_about_the_model_and_the_index(client, dataset):
    assert client.get("/health").json() == {"status": "ok", "step": 12}
    about = client.get("/api/about").json()
    assert (about["squares"], about["images"], len(about["samples"])) == ([2, 2], len(dataset), 8)
    assert about["samples"][0]["caption"] == dataset.captions[0]
    assert about["untrained"] == {"patches": "", "words": ""}


def test_search_by_sentence_and_by_picture(client, dataset):
    found = ask(client, "search", sentence=SENTENCE, top=5)["found"]
    assert len(found) == 5 and all(0 <= each["match"] <= 1 for each in found)
    assert ask(client, "search", sentence=SENTENCE, top=3, skip=2)["found"] == found[2:]
    for each in found:
        assert each["key"] == dataset.mixture.row(each["image"]).key
        np.testing.assert_array_equal(
            pixels(each["picture"]), dataset.images([each["image"]])[0].permute(1, 2, 0).numpy()
        )
    best = ask(client, "search", picture={"found": 11}, top=1)["found"][0]
    assert best["similarity"] == pytest.approx(1, abs=1e-5) and best["match"] is None


@torch.no_grad()
@pytest.mark.parametrize("hidden", [[0], [1, 2], [3, 0, 1]])
def test_the_chosen_squares_are_reconstructed(client, loaded, dataset, hidden):
    answer = ask(client, "patches", picture={"found": 4}, sentence=SENTENCE, hidden=hidden)
    model, image = loaded.model, dataset.images([4])
    mask = torch.tensor([[square in hidden for square in range(4)]])
    for name, sentence in (("with_sentence", SENTENCE), ("without_sentence", "")):
        text, valid = dataset.tokens.batch([sentence])
        words = model.encode_text(text, valid)
        fused = model.fuse_image(model.encode_image(image, mask), words, valid)
        restored = model.reconstruct_image(fused, words, valid, mask).float()
        expected = pictures_of(paste(model, image, mask, restored))[0]
        np.testing.assert_allclose(pixels(answer[name]).astype(int), expected.astype(int), atol=1)
    shown = pixels(answer["with_sentence"]) == image[0].permute(1, 2, 0).numpy()
    for square in range(4):
        row, column = divmod(square, 2)
        part = shown[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
        assert part.all() == (square not in hidden)
    assert answer["l1_with"] != answer["l1_without"]


@torch.no_grad()
def test_the_chosen_words_are_guessed_with_each_picture(client, loaded, dataset):
    words = ["red", "circle", "top", "left"]
    answer = ask(client, "words", picture={"found": 4}, words=words, hidden=[3, 0], other={"sample": 3})["words"]
    assert [each["word"] for each in answer] == ["red", "left"]
    other = np.linspace(0, len(dataset) - 1, 8).round().astype(int)[3]
    images = {"with_image": dataset.images([4]), "other_image": dataset.images([other])}
    images["without_image"] = blank_image(loaded.model, images["with_image"])
    tokenizer = load_tokenizer(str(loaded.tokenizer_folder))
    text, valid = dataset.tokens.batch([SENTENCE])
    starts = [first if last > first else -1 for first, last in dataset.tokens.spans(SENTENCE)]
    hidden = [place for place, first in enumerate(starts) if 0 <= first < 3 or first >= 15]
    assert starts[hidden[0]] == 0 and starts[hidden[1]] >= 15, "the test needs a tokenizer with a token for red"
    text[0, hidden] = dataset.tokens.mask_id
    for name, image in images.items():
        fused = loaded.model.fuse_text(loaded.model.encode_text(text, valid), loaded.model.encode_image(image), valid)
        best = loaded.model.reconstruct_text(fused)[0, hidden[0]].softmax(-1).sort(descending=True)
        shown = answer[0][name]
        assert [guess["probability"] for guess in shown] == pytest.approx(best.values[:4].tolist(), rel=1e-4)
        assert shown[0]["word"] == spelled(tokenizer, [int(best.indices[0])])
    assert answer[0]["with_image"] != answer[0]["other_image"] != answer[0]["without_image"]


def test_all_tokens_of_a_word_are_masked_and_no_others(loaded):
    tokens = BatchTokenizer(load_tokenizer(str(loaded.tokenizer_folder)), loaded.blueprint.text_length)
    words = ["a", "zyxwv", "red", "circle,", "😀"]
    masked = mask_words(tokens, words, [4, 1])
    spans = tokens.spans(" ".join(words))
    hidden = {place for of_word in masked.tokens for place in of_word}
    assert masked.words == [1, 4] and len(masked.tokens[0]) > 1
    for place, (first, last) in enumerate(spans):
        assert (place in hidden) == (last > first and (2 <= first < 7 or first >= 20))
        assert (masked.text_L[place] == tokens.mask_id) == (place in hidden)


def test_guesses_of_a_word_of_two_tokens_are_the_likeliest_pairs(loaded):
    tokenizer = load_tokenizer(str(loaded.tokenizer_folder))
    a, b, c = (tokenizer.convert_tokens_to_ids(letter) for letter in "abc")
    guesses = likeliest(tokenizer, [[(a, 0.6), (b, 0.4)], [(b, 0.9), (c, 0.1)]], 3)
    assert [guess["word"] for guess in guesses] == ["ab", "bb", "ac"]
    assert [guess["probability"] for guess in guesses] == pytest.approx([0.54, 0.36, 0.06])


def test_the_page_learns_that_a_sentence_was_cut(client):
    long = f"{SENTENCE} " * 20
    asked = {
        "search": lambda sentence: {"sentence": sentence, "top": 1},
        "patches": lambda sentence: {"sentence": sentence, "picture": {"sample": 0}, "hidden": [0]},
        "words": lambda sentence: {"words": sentence.split(), "picture": {"sample": 0}, "hidden": [0]},
    }
    for path, question in asked.items():
        assert ask(client, path, **question(SENTENCE))["cut"] == ""
        assert " tokens of a text: 1 of 1 are longer" in ask(client, path, **question(long))["cut"]
    assert ask(client, "search", picture={"found": 0}, sentence=long, top=1)["cut"] == ""
