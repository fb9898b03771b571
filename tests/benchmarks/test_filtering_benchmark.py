"""The filtering benchmark exchanges the captions that it says, and its numbers are correct."""

import numpy as np
import pyarrow as pa

from benchmarks.filtering.compare import ARMS, auc, conditions
from benchmarks.filtering.noise import exchanges
from mvlm.data.shards.where import parse


def test_three_tenths_of_the_captions_move_to_another_image_and_none_is_lost():
    captions = [(f"caption {number // 2}",) for number in range(100)]  # every caption twice
    source = exchanges(captions, np.random.default_rng(1))
    assert sorted(source) == list(range(100))
    assert sum(captions[row] != captions[source[row]] for row in range(100)) == 30
    assert (source == np.arange(100)).sum() == 70


def test_the_area_under_the_curve_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 9, 60).astype(float), rng.random(60) < 0.3
    wins = [
        (one > other) + 0.5 * (one == other) for one in score[positive] for other in score[~positive]
    ]  # by definition
    assert abs(auc(score, positive) - np.mean(wins)) < 1e-12
    assert auc(positive.astype(float), positive) == 1.0


def test_the_arms_compared_have_equally_many_rows():
    rng = np.random.default_rng(0)
    exchanged = np.arange(50) % 3 == 0
    similarity = rng.random(50).astype(np.float32)
    rows = pa.table({"exchanged": exchanged.astype(int), "pick": rng.permutation(50), "itc_similarity": similarity})
    found = {
        arm: rows.filter(parse(text).expression(rows.schema)) if text else rows
        for arm, text in conditions(rows).items()
    }
    assert {arm: len(found[arm]) for arm in ARMS} == {"clean": 33, "filtered": 33, "random": 33, "noisy": 50}
    assert min(found["filtered"]["itc_similarity"].to_pylist()) > np.sort(similarity)[16]
