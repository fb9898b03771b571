"""Masks have exactly the configured sizes, and depend only on their seed."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm.batch import IGNORE
from mvlm.config.schema import Objectives
from mvlm.errors import UserError
from mvlm.model.masking import Purpose, exact_count, generator, patch_mask, token_mask

MASK, ORDINARY = 4, np.arange(10, 1000)


def mask_tokens(rng, tokens, special, ratio=0.3, minimum=1, mask_share=0.8, random_share=0.1):
    shares = {"text_mask_token": mask_share, "text_mask_random": random_share}
    objectives = Objectives(text_mask_ratio=ratio, text_mask_minimum=minimum, **shares)
    return token_mask(rng, tokens, special, objectives, MASK, ORDINARY)


def mask_patches(rng, grid, block, ratio, rounding):
    objectives = Objectives(image_mask_block=block, image_mask_ratio=ratio, image_mask_rounding=rounding)
    return patch_mask(rng, grid, objectives)


def sentence(length):
    """Tokens and which of them are special: the first and the last."""
    tokens = np.arange(100, 100 + length)
    special = np.zeros(length, dtype=bool)
    special[[0, -1]] = True
    return tokens, special


def test_the_papers_mask_hides_30_of_49_blocks_of_2_by_2():
    mask = mask_patches(generator(0, Purpose.PATCHES, 0, 0, 0), (14, 14), 2, 0.6, "ceil")
    assert mask.shape == (196,) and mask.dtype == bool and mask.sum() == 30 * 4
    blocks = mask.reshape(7, 2, 7, 2).sum(axis=(1, 3))
    assert set(blocks.ravel()) == {0, 4}


@given(
    percent=st.integers(1, 99),
    rows=st.integers(1, 8),
    cols=st.integers(1, 8),
    block=st.integers(1, 3),
    rounding=st.sampled_from(["ceil", "floor", "nearest"]),
    seed=st.integers(-5, 2**40),
)
def test_the_number_of_masked_blocks_is_that_of_exact_arithmetic(percent, rows, cols, block, rounding, seed):
    rng = generator(seed, Purpose.PATCHES, 0, 0, 0)
    mask = mask_patches(rng, (rows * block, cols * block), block, percent / 100, rounding)
    exact = Fraction(percent, 100) * rows * cols
    wanted = {"ceil": math.ceil, "floor": math.floor, "nearest": round}[rounding](exact)
    assert mask.sum() == block**2 * max(1, min(wanted, rows * cols - 1))


def test_rounding_errors_of_floats_add_no_block():
    assert math.ceil(0.28 * 25) == 8  # what floats give
    assert exact_count(0.28, 25, "ceil") == 7
    assert exact_count(0.58, 50, "floor") == 29 != math.floor(0.58 * 50)
    assert exact_count(0.6, 25, "ceil") == 15


def test_every_block_is_masked_equally_often():
    masks = [mask_patches(generator(1, Purpose.PATCHES, 0, 0, i), (4, 4), 1, 0.25, "ceil") for i in range(4000)]
    assert np.abs(np.mean(masks, axis=0) - 0.25).max() < 0.03


def test_blocks_that_do_not_tile_the_grid_are_refused():
    with pytest.raises(UserError, match=r"image_mask_block = 2 .* 14 x 15 patches.*choose"):
        mask_patches(generator(0, 0, 0, 0, 0), (14, 15), 2, 0.6, "ceil")


@given(length=st.integers(3, 60), percent=st.integers(1, 99), minimum=st.integers(1, 5), sample=st.integers(0, 999))
def test_token_counts_and_targets(length, percent, minimum, sample):
    tokens, special = sentence(length)
    before = tokens.copy()
    masked, target = mask_tokens(
        generator(0, Purpose.TOKENS, 0, 0, sample), tokens, special, ratio=percent / 100, minimum=minimum
    )
    targeted = target != IGNORE
    wanted = max(minimum, round(Fraction(percent, 100) * (length - 2)))
    assert targeted.sum() == min(wanted, length - 2)
    assert not targeted[special].any()
    assert (target[targeted] == tokens[targeted]).all()
    assert (masked[~targeted] == tokens[~targeted]).all()
    assert (tokens == before).all()


def test_shares_of_mask_random_and_kept_tokens():
    tokens, special = sentence(50)
    pairs = [mask_tokens(generator(3, Purpose.TOKENS, 0, 0, i), tokens, special) for i in range(600)]
    masked, target = np.array(pairs).transpose(1, 0, 2)
    targeted = target != IGNORE
    shown = masked[targeted]
    assert abs(np.mean(shown == MASK) - 0.8) < 0.02
    assert abs(np.mean(shown == target[targeted]) - 0.1) < 0.02
    assert set(shown[(shown != MASK) & (shown != target[targeted])]) <= set(ORDINARY)


@pytest.mark.parametrize("mask_share", [0, 1])
def test_none_or_all_of_the_targets_become_mask_tokens(mask_share):
    tokens, special = sentence(30)
    rng = generator(0, Purpose.TOKENS, 0, 0, 0)
    masked, target = mask_tokens(rng, tokens, special, mask_share=mask_share, random_share=0)
    targeted = target != IGNORE
    assert targeted.any() and (masked[targeted] == (MASK if mask_share else tokens[targeted])).all()


def test_special_tokens_are_not_masked_even_if_there_are_no_others():
    tokens, special = sentence(2)
    masked, target = mask_tokens(generator(0, Purpose.TOKENS, 0, 0, 0), tokens, special)
    assert (masked == tokens).all() and (target == IGNORE).all()


@pytest.mark.parametrize(
    "other",
    [
        (6, Purpose.VIEW, 1, 0, 17),
        (5, Purpose.VIEW + 1, 1, 0, 17),
        (5, Purpose.VIEW, 2, 0, 17),
        (5, Purpose.VIEW, 1, 1, 17),
        (5, Purpose.VIEW, 1, 0, 18),
        (2**64 + 6, Purpose.VIEW, 1, 0, 17),
    ],
)
def test_a_random_stream_repeats_and_depends_on_every_argument(other):
    arguments = (5, Purpose.VIEW, 1, 0, 17)
    draws = generator(*arguments).random(8)
    assert (generator(*arguments).random(8) == draws).all()
    assert not np.isin(generator(*other).random(8), draws).any()
