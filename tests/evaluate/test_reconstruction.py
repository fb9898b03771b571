"""Reconstruction of words and pixels against plain loops over one sentence or image at a time."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvlm.batch import IGNORE
from mvlm.config.schema import Objectives
from mvlm.errors import UserError
from mvlm.evaluate.masked_words import ChosenWords, RandomWords
from mvlm.evaluate.reconstruction import (
    aggregate_pixels,
    aggregate_words,
    derangement,
    evaluate_reconstruction,
    mean_image,
    pixel_target,
)
from mvlm.kernels.patch_l1 import standardize
from mvlm.model import masking
from tests.evaluate.tiny import CAPTIONS, CONFIG, make_model

CPU = torch.device("cpu")
COLOURS = ("red", "blue", "green")


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=30))
def test_a_derangement_is_a_permutation_that_leaves_no_key_in_place(keys):
    if 2 * max(Counter(keys).values()) > len(keys):
        with pytest.raises(UserError, match="more varied"):
            derangement(keys)
        return
    other = derangement(keys)
    assert sorted(other) == list(range(len(keys)))
    assert all(keys[other[i]] != key for i, key in enumerate(keys))


def test_the_derangement_of_distinct_keys_is_a_shift_by_one():
    assert derangement(["d", "b", "a", "c"]).tolist() == [1, 2, 3, 0]


def test_a_single_pair_has_no_derangement():
    with pytest.raises(UserError):
        derangement(["alone"])


def test_word_scores_are_averaged_over_tokens_or_whole_words():
    sums = np.array([[2, 1, 0, 1.0, 3.0, 8.0, 2], [0, 1, 1, 4.0, 2.0, 1.0, 1]])
    tokens = aggregate_words(sums, whole=False)
    assert tokens["word_accuracy"] == pytest.approx({"right": 2 / 3, "none": 2 / 3, "wrong": 1 / 3})
    assert tokens["word_loss"] == pytest.approx({"right": 5 / 3, "none": 5 / 3, "wrong": 3.0})
    assert tokens["hidden_words"] == 3
    words = aggregate_words(sums, whole=True)
    assert words["word_accuracy"] == {"right": 0.5, "none": 0.5, "wrong": 0.5}
    assert words["word_loss"] == pytest.approx({"right": (0.5 + 4) / 2, "none": (1.5 + 2) / 2, "wrong": (4 + 1) / 2})
    assert words["hidden_words"] == 2


def test_pixel_scores_are_averaged_over_values_and_not_images():
    sums = np.array([[1.0, 2.0, 3.0, 4.0, 10], [9.0, 8.0, 7.0, 6.0, 30]])
    assert aggregate_pixels(sums) == pytest.approx({"right": 0.25, "none": 0.25, "wrong": 0.25, "constant": 0.25})


def word_scores_by_loops(model, dataset, words):
    """(hits, losses, hidden tokens) of each sentence and condition, one forward pass each."""
    mean = torch.stack([dataset.images([i])[0].double() for i in range(len(dataset))]).mean(0).round().byte()[None]
    scores = {"right": [], "none": [], "wrong": []}
    for item in range(len(words)):
        text = words.items(np.array([item]))
        row = int(dataset.owner[text.caption_B[0]])
        images = {"right": dataset.images([row]), "none": mean, "wrong": dataset.images([(row + 1) % len(dataset)])}
        for condition, image in images.items():
            read = model.encode_text(text.masked_text_BL, text.valid_BL)
            logits = model.reconstruct_text(model.fuse_text(read, model.encode_image(image), text.valid_BL))[0]
            hits = losses = count = 0
            for place, target in enumerate(text.target_BL[0].tolist()):
                if target != IGNORE:
                    hits += int(logits[place].argmax()) == target
                    losses -= float(logits[place].log_softmax(-1)[target])
                    count += 1
            scores[condition].append((hits, losses, count))
    return scores


@torch.no_grad()
@pytest.mark.parametrize("batch", [2, 64])
def test_word_scores_equal_plain_loops(model, dataset, batch):
    result = evaluate_reconstruction(model, dataset, batch, CPU)
    words = RandomWords(dataset, CONFIG.objectives, CONFIG.run.seed)
    for condition, scores in word_scores_by_loops(model, dataset, words).items():
        hits, losses, counts = map(sum, zip(*scores, strict=True))
        assert result["word_accuracy"][condition] == pytest.approx(hits / counts)
        assert result["word_loss"][condition] == pytest.approx(losses / counts, rel=1e-4)
        assert result["hidden_words"] == counts
    assert len(set(result["word_loss"].values())) == 3


def test_the_protocol_says_what_the_model_was_not_trained_to_reconstruct(model, dataset):
    assert "may know nothing" not in evaluate_reconstruction(model, dataset, 64, CPU)["protocol"]
    other = make_model(replace(CONFIG, objectives=replace(CONFIG.objectives, text=0.0)))
    protocol = evaluate_reconstruction(other, dataset, 64, CPU)["protocol"]
    assert "may know nothing about filling in words" in protocol
    assert "(objectives.text = 0)" in protocol
    assert "reconstructing images" not in protocol
    alone = make_model(replace(CONFIG, objectives=replace(CONFIG.objectives, reconstruct_from="self")))
    assert evaluate_reconstruction(alone, dataset, 64, CPU)["protocol"].count('reconstruct_from = "self"') == 2


@torch.no_grad()
def test_chosen_word_scores_equal_plain_loops(model, dataset):
    result = evaluate_reconstruction(model, dataset, 3, CPU, COLOURS)
    for condition, scores in word_scores_by_loops(model, dataset, ChosenWords(dataset, COLOURS)).items():
        assert result["word_accuracy"][condition] == pytest.approx(np.mean([hits == n for hits, _, n in scores]))
        assert result["word_loss"][condition] == pytest.approx(np.mean([loss / n for _, loss, n in scores]), rel=1e-4)
        assert result["hidden_words"] == len(scores)


@torch.no_grad()
@pytest.mark.parametrize("standardized", [False, True])
def test_pixel_scores_equal_plain_loops(request, model, dataset, standardized):
    if standardized:
        model = request.getfixturevalue("standardizing_model")
    images = torch.cat([dataset.images([i]) for i in range(len(dataset))])
    targets = model.patchify(model.normalize(images))
    targets = (standardize(targets) if standardized else targets).numpy()
    empty = dataset.tokens.batch([""])
    sums, values = dict.fromkeys(("right", "none", "wrong", "constant"), 0.0), 0
    for row in range(len(dataset)):
        rng = masking.generator(CONFIG.run.seed, masking.Purpose.PATCHES, 0, 0, row)
        mask = masking.patch_mask(
            rng, (2, 2), Objectives(image_mask_block=1, image_mask_ratio=0.6, image_mask_rounding="ceil")
        )
        texts = {"right": dataset.tokens.batch([CAPTIONS[row][0]]), "none": empty}
        texts["wrong"] = dataset.tokens.batch([CAPTIONS[(row + 1) % len(dataset)][0]])
        predicted = {"constant": np.sort(targets, axis=0)[len(dataset) // 2]}
        for condition, (text, valid) in texts.items():
            read = model.encode_text(text, valid)
            hidden = model.encode_image(images[row : row + 1], torch.from_numpy(mask)[None])
            restored = model.reconstruct_image(
                model.fuse_image(hidden, read, valid), read, valid, torch.from_numpy(mask)[None]
            )
            predicted[condition] = restored[0].numpy()
        for condition, pixels in predicted.items():
            sums[condition] += np.abs(pixels - targets[row])[mask].sum()
        values += mask.sum() * targets.shape[-1]

    result = evaluate_reconstruction(model, dataset, 3, CPU)["pixel_l1"]
    assert result == pytest.approx({condition: total / values for condition, total in sums.items()}, rel=1e-4)
    assert len(set(result.values())) == 4


def test_pixel_targets_are_those_of_the_objective(standardizing_model, dataset):
    image = dataset.images([0, 1])
    patches = standardizing_model.patchify(standardizing_model.normalize(image))
    torch.testing.assert_close(pixel_target(standardizing_model, image), standardize(patches))


def test_the_mean_image_is_rounded_to_the_nearest_level(dataset):
    whole = torch.cat([dataset.images([i]) for i in range(len(dataset))]).double().mean(0)
    assert (mean_image(dataset, 2)[0].double() - whole).abs().max() <= 0.5


def test_every_occurrence_of_a_word_is_masked_whole_and_alone(dataset):
    words = ChosenWords(dataset, ["red"])
    found = words.items(np.arange(len(words)))
    texts, _ = dataset.texts(found.caption_B.tolist())
    # "hundred" does not contain the word "red"; "Red" counts; what lies beyond the 12 tokens does not.
    assert np.array_equal(np.bincount(found.caption_B, minlength=len(dataset.captions)), _reds(dataset))
    for b, number in enumerate(found.caption_B):
        caption = dataset.captions[number]
        hidden = found.target_BL[b] != IGNORE
        spans = dataset.tokens.spans(caption)
        spelled = "".join(caption[first:last] for place, (first, last) in enumerate(spans) if hidden[place])
        assert spelled.strip().lower() == "red"
        assert torch.equal(found.target_BL[b][hidden], texts[b][hidden])
        assert (found.masked_text_BL[b][hidden] == dataset.tokens.mask_id).all()
        assert torch.equal(found.masked_text_BL[b][~hidden], texts[b][~hidden])


def _reds(dataset):
    """Occurrences of "red" within the 12 tokens, counted by splitting at spaces."""
    counts = []
    for caption in dataset.captions:
        end = max(last for _, last in dataset.tokens.spans(caption))
        kept, place = 0, 0
        for word in caption.replace(",", " ").split(" "):
            kept += word.lower() == "red" and place + len(word) <= end
            place += len(word) + 1
        counts.append(kept)
    return counts


def test_words_that_occur_in_no_caption_are_refused(model, dataset):
    with pytest.raises(UserError, match=r"None of the 11 captions holds purple, re\.d"):
        evaluate_reconstruction(model, dataset, 3, CPU, ("purple", "re.d"))


def test_random_words_depend_on_the_seed_and_not_on_the_batch(dataset):
    words = RandomWords(dataset, CONFIG.objectives, CONFIG.run.seed)
    alone, together = words.items(np.array([4])), words.items(np.arange(len(words)))
    length = int(alone.valid_BL.sum())
    assert torch.equal(alone.target_BL[0, :length], together.target_BL[4, :length])
    other = RandomWords(dataset, CONFIG.objectives, seed=6).items(np.arange(len(words)))
    assert not torch.equal(other.target_BL, together.target_BL)


def test_plain_words_all_become_the_mask_token(dataset):
    objectives = Objectives(text_mask_token=0.0, text_mask_random=1.0, image_mask_block=1)
    text = RandomWords(dataset, objectives, CONFIG.run.seed, plain=True).items(np.arange(len(dataset.captions)))
    assert (text.masked_text_BL[text.target_BL != IGNORE] == dataset.tokens.mask_id).all()
