"""The losses compared with their formulas in float64, written as loops."""

import math

import numpy as np
import pytest
import torch

from mvlm.batch import IGNORE, Encoded, MetricAccumulator
from mvlm.kernels.negatives import gumbel_noise
from mvlm.model.losses.itc import begin_contrast, itc_loss
from mvlm.model.losses.itm import NegativeSampler, itm_loss
from mvlm.model.losses.mim import mim_loss
from mvlm.model.losses.mlm import mlm_loss

UNIQUE = torch.arange(100)


def features(count: int, width: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(count, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return torch.nn.functional.normalize(image, dim=-1), torch.nn.functional.normalize(text, dim=-1)


def itc_by_hand(image: np.ndarray, text: np.ndarray, temperature: float, same: np.ndarray) -> float:
    """-(1/2G) sum_i [log p(text_i | image_i) + log p(image_i | text_i)], duplicates left out of the sums."""
    total, count = 0.0, len(image)
    for i in range(count):
        for anchors, others in ((image, text), (text, image)):
            kept = [j for j in range(count) if j == i or not same[i, j]]
            scores = [float(anchors[i] @ others[j]) / temperature for j in kept]
            total += math.log(sum(math.exp(s - max(scores)) for s in scores)) + max(scores) - scores[kept.index(i)]
    return total / (2 * count)


@pytest.mark.parametrize("exclude", [True, False])
def test_itc_matches_the_formula(exclude: bool) -> None:
    image, text = features(12)
    image_id, caption_id = torch.arange(12), torch.arange(12)
    image_id[7], caption_id[3], caption_id[9] = 2, 5, 5
    same = np.zeros((12, 12), dtype=bool)
    for group in ([2, 7], [3, 5, 9]) if exclude else ():
        for i in group:
            for j in group:
                same[i, j] = i != j
    pairs = Encoded(image, text, image_id, caption_id)
    given = pairs, torch.tensor([0.07]), None
    loss = itc_loss(*given, begin_contrast(*given, exclude)(), 1)
    assert loss.item() == pytest.approx(itc_by_hand(image.numpy(), text.numpy(), 0.07, same), rel=1e-5)


def test_negatives_are_drawn_by_the_softmax_of_similarity() -> None:
    image, text = features(6, seed=2)
    temperature, groups, batches = 0.3, 40, 100
    draws, number = groups * batches, torch.arange(6 * groups)
    pairs = Encoded(image.repeat(groups, 1), text.repeat(groups, 1), number, number)
    counts_image, counts_text = np.zeros((6, 6)), np.zeros((6, 6))
    for batch in range(batches):
        drawn = NegativeSampler(6).draw(pairs, pairs, number + len(number) * batch, torch.tensor(temperature))
        for counts, index in zip((counts_image, counts_text), drawn, strict=True):
            np.add.at(counts, (number % 6, index % 6), 1)
    logits = (image @ text.T).numpy() / temperature
    for counts, scores in ((counts_image, logits.T), (counts_text, logits)):
        weights = np.exp(scores) * (1 - np.eye(6))
        expected = draws * weights / weights.sum(1, keepdims=True)
        assert np.all(np.diag(counts) == 0)
        off = ~np.eye(6, dtype=bool)
        assert (((counts - expected) ** 2)[off] / expected[off]).sum() < 60  # chi-square, 24 degrees; p < 1e-4


def test_negatives_depend_only_on_their_group() -> None:
    image, text = features(12, seed=3)
    position, ids = torch.arange(12) + 480, UNIQUE[:12]

    def draw(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = Encoded(image[rows], text[rows], ids[rows], ids[rows])
        return NegativeSampler(4, seed=11).draw(pairs, pairs, position[rows], torch.tensor(0.07))

    whole = draw(slice(0, 12))
    for start in (0, 4, 8):
        for together, alone in zip(whole, draw(slice(start, start + 4)), strict=True):
            assert (together[start : start + 4] - start).tolist() == alone.tolist()
            assert set(alone.tolist()) <= {0, 1, 2, 3}


@pytest.mark.parametrize("temperature", [0.07, 1e-9])
def test_a_duplicate_is_never_drawn(temperature: float) -> None:
    image, text = (x.float() for x in features(4, seed=4))
    text[3] = -image[0]  # the least similar, but the only candidate
    image[3] = -text[0]
    caption = torch.tensor([1, 1, 1, 2])
    for step in range(200):
        position = torch.arange(4) + 4 * step
        pairs = Encoded(image, text, UNIQUE[:4], caption)
        image_idx, text_idx = NegativeSampler(4).draw(pairs, pairs, position, torch.tensor(temperature))
        assert image_idx[:3].tolist() == text_idx[:3].tolist() == [3, 3, 3]


def test_negatives_are_counted_only_if_there_are_any() -> None:
    def counted(image: torch.Tensor, caption: torch.Tensor, group: int, exclude: bool) -> torch.Tensor:
        return NegativeSampler(group, 0, exclude).counted(torch.stack([image, caption], 1), len(image))

    image = torch.tensor([1, 2, 3, 4, 5, 5, 5, 5, 1, 1, 2, 3])
    caption = torch.tensor([1, 1, 1, 1, 1, 2, 3, 4, 1, 2, 1, 3])
    without, with_negatives = [True, False, False], [True, True, True]
    assert counted(image, caption, 4, True).tolist() == [without] * 8 + [with_negatives] * 4
    assert counted(image, caption, 12, True).all()
    assert counted(image, caption, 4, False).all()
    one_other = torch.tensor([1, 1, 1, 2])
    assert counted(UNIQUE[:4], one_other, 4, True).all()
    assert counted(UNIQUE[:4], one_other, 2, True).tolist() == [without] * 2 + [with_negatives] * 2


def test_other_pairs_are_drawn_even_if_features_are_not_finite() -> None:
    image, text = (x.float() for x in features(4, seed=5))
    image[1], text[2] = float("nan"), float("inf")
    pairs = Encoded(image, text, UNIQUE[:4], UNIQUE[:4])
    for index in NegativeSampler(4).draw(pairs, pairs, torch.arange(4), torch.tensor(0.001)):
        assert all(i != j and 0 <= j < 4 for i, j in enumerate(index.tolist()))


def test_noise_is_standard_gumbel_and_a_function_of_its_key_alone() -> None:
    row, column = torch.arange(400)[:, None], torch.arange(500)[None, :]
    noise = gumbel_noise(7, row, column).double()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.02)
    assert torch.equal(gumbel_noise(7, row[13:14], column[:, 20:30]), gumbel_noise(7, row, column)[13:14, 20:30])
    assert not torch.equal(gumbel_noise(8, row, column), gumbel_noise(7, row, column))
    assert torch.corrcoef(torch.stack([noise[:-1].flatten(), noise[1:].flatten()]))[0, 1].abs() < 0.01


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("has_negatives", [True, False])
def test_itm_is_the_mean_cross_entropy_of_the_counted_logits(has_negatives: bool, micro_batches: int) -> None:
    """Of the pair itself and its two negatives, of which the second pair may have none."""
    logits = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    counted = torch.ones(4, 3, dtype=torch.bool)
    if not has_negatives:
        counted[1, 1:] = False
        logits[1, 1:] = 1e4  # must not matter
    logits.requires_grad_()
    total, count = 0.0, int(counted.sum())
    for (pair, *negatives), (_, *are_counted) in zip(logits.double().tolist(), counted.tolist(), strict=True):
        total += math.log(1 + math.exp(pair[0] - pair[1]))
        for (no_match, match), is_counted in zip(negatives, are_counted, strict=True):
            total += math.log(1 + math.exp(match - no_match)) if is_counted else 0.0
    losses = [
        itm_loss(*rows, torch.tensor(count), micro_batches)
        for rows in zip(logits.chunk(micro_batches), counted.chunk(micro_batches), strict=True)
    ]
    mean = sum(losses) / micro_batches
    assert mean.item() == pytest.approx(total / count, rel=1e-6)
    mean.backward()
    assert (logits.grad != 0).any(-1).equal(counted)


def test_mlm_of_micro_batches_averages_to_the_mean_over_the_global_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(7, 11, generator=generator), torch.randint(0, 11, (7,), generator=generator)
    by_hand = 0.0
    for row, word in zip(logits.double().tolist(), target.tolist(), strict=True):
        by_hand += math.log(sum(math.exp(x) for x in row)) - row[word]
    metrics = MetricAccumulator()
    rows = [slice(0, 1), slice(1, 5), slice(5, 5), slice(5, 7)]
    parts = [mlm_loss(logits[own], target[own], torch.tensor(7), 3, metrics) for own in rows]
    assert metrics.total == {"word_accuracy": 7}
    assert metrics.correct["word_accuracy"] == (logits.argmax(-1) == target).sum()
    assert sum(part.item() for part in parts) / 3 == pytest.approx(by_hand / 7, rel=1e-6)


def test_mlm_is_0_if_no_caption_of_the_global_batch_has_a_token_to_mask() -> None:
    """Captions may be special tokens only; the batch still has other losses."""
    logits = torch.randn(3, 11, requires_grad=True)
    metrics = MetricAccumulator()
    loss = mlm_loss(logits, torch.full((3,), IGNORE), torch.tensor(0), 2, metrics)
    loss.backward()
    assert loss.item() == 0.0
    assert metrics.total == {"word_accuracy": 0}
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("normalized", [False, True])
def test_mim_of_micro_batches_averages_to_the_l1_of_all_masked_values(normalized: bool) -> None:
    """Two images of 2 x 3 patches of 2 x 2 pixels, which are cut out one by one."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 4, 6), generator=generator, dtype=torch.uint8)
    pixels, masked_patches = torch.randn(5, 12, generator=generator), [1, 5, 6, 8, 9]
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    by_hand = 0.0
    for patch, predicted in zip(masked_patches, pixels.double().numpy(), strict=True):
        row, column = divmod(patch % 6, 3)
        area = image[patch // 6, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].double().numpy()
        truth = ((np.moveaxis(area, 0, -1) / 255 - mean) / std).flatten()
        if normalized:
            truth = (truth - truth.mean()) / np.sqrt(truth.var(ddof=1) + 1e-6)
        by_hand += np.abs(predicted - truth).sum()
    total = 0.0
    for part in (slice(0, 2), slice(2, 5)):
        patches = torch.tensor(masked_patches[part])
        total += mim_loss(pixels[part], image, patches, 2, mean, std, torch.tensor(5), 2, normalized).item()
    assert total / 2 == pytest.approx(by_hand / (5 * 12), rel=1e-6)
