"""An epoch draws each row exactly as often as the weights say, as a function of seed and position."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import make_rows, write_shards

from mvlm.data.loading.order import BlockShuffle, MixtureSampler
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from tests.conftest import pair_args

corpora = st.lists(
    st.tuples(st.integers(1, 60), st.sampled_from([0.3, 0.5, 1.0, 1.25, 2.0, 2.5, 3.1])), min_size=1, max_size=4
)


def epoch_of(draws, epoch):
    rows, occurrences = draws(np.arange(epoch * draws.per_epoch, (epoch + 1) * draws.per_epoch))
    return list(zip(rows.tolist(), occurrences.tolist(), strict=True))


@settings(max_examples=80, deadline=None)
@given(corpora=corpora, seed=st.integers(0, 2**64 - 1), block=st.integers(1, 12), window=st.integers(0, 5))
def test_each_row_is_drawn_as_often_as_its_weight_demands(corpora, seed, block, window):
    sizes, weights = zip(*corpora, strict=True)
    counts = [round(Fraction(str(weight)) * size) for size, weight in corpora]
    if not sum(counts):
        return
    draws, epochs = MixtureSampler(sizes, weights, seed, block, window), 5
    drawn = [epoch_of(draws, epoch) for epoch in range(epochs)]
    first_rows = [0, *itertools.accumulate(sizes)]
    for epoch in drawn:
        assert len(set(epoch)) == len(epoch) == draws.per_epoch == sum(counts)
        times = Counter(row for row, _ in epoch)
        for row, count in times.items():
            assert {occurrence for drawn_row, occurrence in epoch if drawn_row == row} == set(range(count))
        for first, size, count in zip(first_rows, sizes, counts, strict=False):
            of_corpus = [times[row] for row in range(first, first + size)]
            assert sum(of_corpus) == count and set(of_corpus) <= {count // size, count // size + 1}
    total = Counter(row for epoch in drawn for row, _ in epoch)
    for first, size in zip(first_rows, sizes, strict=False):
        of_corpus = [total[row] for row in range(first, first + size)]
        assert max(of_corpus) - min(of_corpus) <= 1


def test_a_draw_is_a_function_of_seed_and_position():
    sizes, weights = [70, 33, 5], [1.0, 2.5, 0.4]
    draws = MixtureSampler(sizes, weights, 5, 8, 3)
    whole = draws(np.arange(700))
    at = np.random.default_rng(0).integers(0, 700, 200)
    for found, expected in zip(MixtureSampler(sizes, weights, 5, 8, 3)(at), whole, strict=True):
        assert (found == expected[at]).all()
    for other in (MixtureSampler(sizes, weights, 6, 8, 3), MixtureSampler(sizes, [1.0, 1.5, 0.4], 5, 8, 3)):
        assert np.mean(other(np.arange(150))[0] == whole[0][:150]) < 0.1


def test_equal_weights_give_the_plain_order():
    rows, occurrences = MixtureSampler([40, 60], [1.0, 1.0], 9, 8, 4)(np.arange(300))
    assert (rows == BlockShuffle(100, 9, 8, 4)(np.arange(300))).all()
    assert not occurrences.any()


def test_a_fraction_of_a_corpus_in_a_global_shuffle_consists_of_single_rows():
    draws = MixtureSampler([4096], [0.25], 1)
    parts = [{row for row, _ in epoch_of(draws, epoch)} for epoch in range(4)]
    assert set.union(*parts) == set(range(4096))
    assert all(len({row // 64 for row in part}) == 64 for part in parts)


def test_a_fraction_of_a_corpus_in_blocks_consists_of_other_whole_blocks_each_epoch():
    draws = MixtureSampler([4096], [0.25], 1, 64, 4)
    parts = [{row for row, _ in epoch_of(draws, epoch)} for epoch in range(4)]
    assert set.union(*parts) == set(range(4096))
    for part in parts:
        assert {row // 64 for row in part} == {row // 64 for row in sorted(part)[::64]}  # only 16 blocks
        assert sorted(part) != list(range(min(part), min(part) + 1024))  # which are not adjacent


def test_a_billion_rows_in_ten_corpora_are_cheap():
    draws = MixtureSampler([10**8] * 10, [0.1 * (i + 1) for i in range(10)], 0, 64, 64)
    rows, occurrences = draws(np.arange(10**9, 10**9 + 4096))
    assert draws.per_epoch == 55 * 10**7 and rows.max() < 10**9
    assert len(set(zip(rows.tolist(), occurrences.tolist(), strict=True))) == 4096


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    return [write_shards(out / "a", make_rows(20)), write_shards(out / "b", make_rows(7, seed=4))]


def test_the_fingerprint_includes_the_weights(folders):
    prints = [Mixture(folders, weights).fingerprint for weights in ((), (1.0, 1.0), (1.0, 2.0), (2.0, 1.0))]
    assert prints[0] == prints[1] and len(set(prints)) == 3
    assert Mixture(folders, (1.0, 2.5)).per_epoch == 20 + 18


def test_weights_that_draw_nothing_are_refused(folders):
    with pytest.raises(UserError, match=r"data\.weights = \[0\.01, 0\.01\] draw no row"):
        Mixture(folders, (0.01, 0.01))
    with pytest.raises(UserError, match=r"data\.weights = \[1\.0, 0\.01\] draw no row of \S+/b: raise them"):
        Mixture(folders, (1.0, 0.01))


def test_a_row_drawn_again_in_an_epoch_is_augmented_differently(folders, tokenizer, with_data):
    dataset = PairDataset(Mixture(folders, (1.0, 3.0)), tokenizer, *pair_args(with_data()), (4, 4))
    assert len(dataset) == 41
    samples = [dataset.sample(5, 22, occurrence) for occurrence in range(3)]
    for one, other in itertools.combinations(samples, 2):
        assert (one.images[0] != other.images[0]).any()


def test_a_row_drawn_again_in_an_epoch_takes_its_next_caption(tmp_path, tokenizer, with_data):
    row = make_rows(1)[0] | {"captions": ["red", "green", "blue"]}
    dataset = PairDataset(
        Mixture([write_shards(tmp_path / "s", [row])], (3.0,)),
        tokenizer,
        *pair_args(with_data(caption="cycle")),
        (4, 4),
    )
    texts = [dataset.sample(0, 0, occurrence).text_L.tolist() for occurrence in range(3)]
    assert texts == [tokenizer(caption)["input_ids"] for caption in row["captions"]]
