"""Examples for people show what the model saw, reconstructed and scored."""

import numpy as np
import pytest
import torch

from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.shards.mixture import Mixture
from mvlm.evaluate.examples import GREY, examples
from mvlm.evaluate.reconstruction import evaluate_reconstruction, patch_masks
from tests.conftest import eval_args
from tests.evaluate.tiny import CAPTIONS, CONFIG, make_shards

CPU = torch.device("cpu")


@pytest.fixture(params=["model", "standardizing_model"])
def either_model(request):
    return request.getfixturevalue(request.param)


def hidden_pixels(model, rows):
    """bool [rows, H, W]: 2 x 2 patches of 8 pixels."""
    masks = patch_masks(model, np.array(rows)).reshape(-1, 2, 2).numpy()
    return masks.repeat(8, axis=1).repeat(8, axis=2)


def test_visible_patches_are_original_and_masked_ones_grey(either_model, dataset, tokenizer):
    rows = [0, 3, 6]
    images, _ = examples(either_model, dataset, tokenizer, rows, CPU)
    for row, example, hidden in zip(rows, images, hidden_pixels(either_model, rows), strict=True):
        original = dataset.images([row])[0].permute(1, 2, 0).numpy()
        assert np.array_equal(example.original, original)
        assert example.caption == CAPTIONS[row][0]
        assert (example.masked[hidden] == GREY).all()
        assert np.array_equal(example.masked[~hidden], original[~hidden])
        for restored in (example.with_text, example.without_text):
            assert np.array_equal(restored[~hidden], original[~hidden])
            assert not np.array_equal(restored[hidden], original[hidden])


def test_the_scores_of_all_examples_average_to_the_measured_ones(either_model, dataset, tokenizer):
    images, _ = examples(either_model, dataset, tokenizer, range(len(dataset)), CPU)
    measured = evaluate_reconstruction(either_model, dataset, 4, CPU)["pixel_l1"]
    assert np.mean([example.l1_with for example in images]) == pytest.approx(measured["right"], rel=1e-4)
    assert np.mean([example.l1_without for example in images]) == pytest.approx(measured["none"], rel=1e-4)


def test_pasted_pixels_have_the_stated_error(model, dataset, tokenizer):
    """Unless clipped: the L1 in normalised space times the standard deviation in grey levels, 0.5 x 255."""
    (example,), _ = examples(model, dataset, tokenizer, [2], CPU)
    hidden = hidden_pixels(model, [2])[0]
    restored, original = example.with_text[hidden].astype(float), example.original[hidden].astype(float)
    if restored.min() > 0 and restored.max() < 255:
        assert np.abs(restored - original).mean() == pytest.approx(example.l1_with * 127.5, abs=0.5)
    else:
        assert np.abs(restored - original).mean() <= example.l1_with * 127.5 + 0.5


def test_tokens_spell_the_caption_and_guesses_are_probabilities(model, dataset, tokenizer):
    _, texts = examples(model, dataset, tokenizer, range(len(dataset)), CPU)
    for row, example in enumerate(texts):
        spelled = "".join(token.text for token in example.tokens)
        assert spelled == CAPTIONS[row][0][: len(spelled)]
        assert any(token.with_image for token in example.tokens)
        for token in example.tokens:
            assert bool(token.with_image) == bool(token.without_image)
            for guesses in filter(None, (token.with_image, token.without_image)):
                probabilities = [guess.probability for guess in guesses]
                assert probabilities == sorted(probabilities, reverse=True)
                assert 0 < sum(probabilities) <= 1 + 1e-6
                for guess in guesses:
                    if guess.right:
                        assert guess.word.strip() == token.text.strip()
        right, hidden = example.right("with_image")
        assert hidden == sum(bool(token.with_image) for token in example.tokens)
        assert right == sum(token.with_image[0].right for token in example.tokens if token.with_image)


def test_punctuation_is_not_masked_as_a_word(model, tokenizer, tmp_path, monkeypatch):
    captions = [["a red, red. dog!"], ["..., !!"], ["one - dog, two - dogs; three."]]
    signs = EvalDataset(Mixture([make_shards(tmp_path / "signs", captions)]), tokenizer, *eval_args(CONFIG))
    shown = []
    for seed in range(8):
        monkeypatch.setattr(model, "seed", seed)
        _, texts = examples(model, signs, tokenizer, range(3), CPU)
        shown += [[token.text for token in example.tokens if token.with_image] for example in texts]
    assert all(shown), "something is masked in each, even in punctuation alone"
    assert all(any(map(str.isalnum, text)) for row in (*shown[::3], *shown[2::3]) for text in row)
