"""The order of samples is a bijection each epoch, random enough, local enough, and cheap."""

import itertools
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvlm.data.loading.order import BlockShuffle, GlobalShuffle, MixtureSampler, ShardShuffle, permute

sizes = st.integers(1, 700)
small = st.integers(1, 20)


def epoch_of(order, epoch):
    return order(np.arange(epoch * order.rows, (epoch + 1) * order.rows))


@settings(max_examples=150, deadline=None)
@given(rows=sizes, seed=st.integers(-(2**63), 2**64), block=small, window=small, epoch=st.integers(0, 10**6))
def test_every_epoch_visits_every_row_once(rows, seed, block, window, epoch):
    assert (np.sort(epoch_of(BlockShuffle(rows, seed, block, window), epoch)) == np.arange(rows)).all()


@settings(max_examples=60, deadline=None)
@given(rows=sizes, block=small, window=small, data=st.data())
def test_any_positions_in_any_order_give_the_same_rows(rows, block, window, data):
    order = BlockShuffle(rows, 3, block, window)
    whole = order(np.arange(3 * rows))
    positions = np.array(data.draw(st.lists(st.integers(0, 3 * rows - 1), max_size=30)), dtype=np.int64)
    assert (order(positions) == whole[positions]).all()
    shape = (3, rows)
    assert order(np.arange(3 * rows).reshape(shape)).shape == shape


def test_epochs_and_seeds_differ():
    orders = [
        epoch_of(BlockShuffle(1000, seed, 16, 4), epoch) for seed, epoch in itertools.product((0, 1, 2), (0, 1, 2))
    ]
    for one, other in itertools.combinations(orders, 2):
        assert np.mean(one == other) < 0.02
    # Nor is one merely a rotation of another.
    for one, other in itertools.combinations(orders, 2):
        assert Counter((one - other) % 1000).most_common(1)[0][1] < 60


@settings(max_examples=60, deadline=None)
@given(rows=sizes, block=small, window=small, epoch=st.integers(0, 50))
def test_a_window_reads_few_blocks(rows, block, window, epoch):
    """Each window covers whole blocks of the corpus rotated by an unknown offset, which the test finds by trial."""
    order = BlockShuffle(rows, 11, block, window)
    seen = epoch_of(order, epoch)
    full = rows // block
    windows = max(1, -(-full // window))
    starts = [index * full // windows * block for index in range(windows)] + [rows]
    starts[0] = 0

    def holds(offset):
        blocks = ((seen - offset) % rows) // block
        parts = [set(blocks[start:end]) for start, end in itertools.pairwise(starts)]
        whole = [part - {full} for part in parts]
        return all(len(part) <= window for part in whole) and sum(map(len, whole)) == full

    assert any(holds(offset) for offset in range(rows))


def test_every_row_is_equally_likely_in_each_place():
    rows, epochs = 24, 6000
    order = BlockShuffle(rows, 1, 3, 2)
    for place in (0, 11, 23):
        counts = np.bincount(order(np.arange(epochs) * rows + place), minlength=rows)
        chi2 = ((counts - epochs / rows) ** 2 / (epochs / rows)).sum()
        assert chi2 < 60  # 23 degrees of freedom: p = 4e-5


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_permutations_of_a_few_items_are_equally_likely(size):
    keys = np.random.default_rng(1).integers(0, 2**64, 12000, dtype=np.uint64)
    columns = [permute(np.full(len(keys), value), np.full(len(keys), size), keys) for value in range(size)]
    counts = Counter(zip(*(column.tolist() for column in columns), strict=True))
    possible = list(itertools.permutations(range(size)))
    expected = len(keys) / len(possible)
    assert set(counts) == set(possible)
    assert sum((counts[p] - expected) ** 2 / expected for p in possible) < 2 * len(possible) + 25


def test_neighbours_are_separated():
    seen = epoch_of(BlockShuffle(100_000, 0, 64, 64), 0)
    assert np.mean(np.abs(np.diff(seen)) == 1) < 0.002
    assert abs(np.corrcoef(seen[:-1], seen[1:])[0, 1]) < 0.6  # windows mix blocks from all over the corpus


def test_a_billion_rows_are_cheap():
    tracemalloc.start()
    began = time.process_time()
    order = BlockShuffle(10**9 + 7, 0, 64, 64)
    rows = order(np.arange(5 * 10**9, 5 * 10**9 + 4096))
    elapsed, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(rows.tolist())) == 4096 and rows.min() >= 0 and rows.max() < order.rows
    assert peak < 2e6 and elapsed < 30


def test_the_order_is_the_same_in_every_version():
    """Another order would break every resumed run."""
    assert BlockShuffle(100, 0, 8, 4)(np.array([0, 1, 2, 99, 100, 250])).tolist() == [79, 8, 80, 68, 14, 58]


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(1, 300), seed=st.integers(-(2**63), 2**64), epoch=st.integers(0, 10**6))
def test_a_global_shuffle_is_another_permutation_for_each_epoch_and_seed(rows, seed, epoch):
    order = GlobalShuffle(rows, seed)
    seen = epoch_of(order, epoch)
    assert (np.sort(seen) == np.arange(rows)).all()
    both = order(np.arange(epoch * rows, (epoch + 2) * rows))
    assert (both[:rows] == seen).all() and (both[rows:] == epoch_of(order, epoch + 1)).all()
    if rows > 20:
        others = [both[rows:], epoch_of(GlobalShuffle(rows, seed + 1), epoch)]
        assert all(np.mean(other == seen) < 0.3 for other in others)


def test_a_global_shuffle_is_the_same_in_every_version():
    assert GlobalShuffle(100, 0)(np.array([0, 1, 2, 99, 100, 250])).tolist() == [50, 68, 22, 92, 0, 70]
    big = GlobalShuffle(5 * 10**9, 0)(np.arange(45 * 10**8, 45 * 10**8 + 4096))
    assert len(set(big.tolist())) == 4096 and big.min() >= 0 and big.max() < 5 * 10**9
    assert abs(np.corrcoef(big[:-1], big[1:])[0, 1]) < 0.06 and abs(big.mean() / 2.5e9 - 1) < 0.05


shard_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=25)


@settings(max_examples=100, deadline=None)
@given(lengths=shard_lengths, seed=st.integers(-(2**63), 2**64), window=small, epoch=st.integers(0, 10**6))
def test_a_shuffle_of_shards_reads_a_few_at_a_time(lengths, seed, window, epoch):
    order = ShardShuffle(lengths, seed, window)
    assert order.rows == sum(lengths)
    seen = epoch_of(order, epoch)
    assert (np.sort(seen) == np.arange(order.rows)).all()
    shards = np.repeat(np.arange(len(lengths)), lengths)[seen]
    places = [np.flatnonzero(shards == shard) for shard in range(len(lengths))]
    together = [sum(place.min() < end <= place.max() + 1 for place in places) for end in range(1, order.rows + 1)]
    assert max(together) <= window  # shards that have been begun but not finished
    assert (order(np.arange(epoch * order.rows, (epoch + 2) * order.rows))[: order.rows] == seen).all()


def test_the_order_of_shards_differs_each_epoch_and_mixes_a_window():
    order = ShardShuffle([100] * 50, 4, 5)
    epochs = [epoch_of(order, epoch) for epoch in range(3)]
    for one, other in itertools.combinations(epochs, 2):
        assert np.mean(one == other) < 0.01
    first = epochs[0][:500]
    assert len(set((first // 100).tolist())) == 5
    assert np.bincount(first[:250] // 100).max() < 80  # a perfect mixture would have 50
    assert ShardShuffle([3, 1, 4, 1, 5], 0, 2)(np.array([0, 5, 13, 14, 30])).tolist() == [0, 6, 13, 10, 12]


def test_a_mixture_of_whole_shards_draws_as_often_as_its_weights_demand():
    shards = [[30, 20, 7], [11, 11, 11]]
    sizes, weights = [57, 33], [1.0, 2.5]
    draws = MixtureSampler(sizes, weights, 3, 15, 2, shards)
    blocks = MixtureSampler(sizes, weights, 3, 15, 2)
    for epoch in range(3):
        at = np.arange(epoch * draws.per_epoch, (epoch + 1) * draws.per_epoch)
        pairs = {tuple(pair) for pair in np.stack(draws(at), axis=1).tolist()}
        assert len(pairs) == draws.per_epoch == 57 + 82
        assert pairs == {tuple(pair) for pair in np.stack(blocks(at), axis=1).tolist()}
