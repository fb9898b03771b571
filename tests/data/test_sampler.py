"""If the order is changed between two stops, every epoch still draws every row once, and in a single order."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import make_rows, write_shards

from mvlm.checkpoint.integrity import read_state
from mvlm.checkpoint.state import OrderSpec
from mvlm.config.load import load_stored_config
from mvlm.config.schema import Data
from mvlm.data.loading import neighbours as near_rows
from mvlm.data.loading.neighbours import neighbours
from mvlm.data.loading.sampler import make_sampler, order_of, reason_for_blocks, resumed, settle_shuffle
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from mvlm.training.checkpoint.resume import with_stored_order
from tests.training.conftest import KEPT

ROWS = 60
ORDERS = [
    order_of(data)
    for data in (
        Data(shuffle="blocks", shuffle_block=8, shuffle_window=2),
        Data(shuffle="blocks", shuffle_block=4, shuffle_window=2),
        Data(shuffle="blocks", shuffle_block=8, shuffle_window=5),
        Data(shuffle_shards=2),
        Data(shuffle="global"),
    )
]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    out = tmp_path_factory.mktemp("sampled")
    return Mixture([write_shards(out / "a", make_rows(ROWS // 2), 7), write_shards(out / "b", make_rows(ROWS // 2), 8)])


@pytest.fixture(scope="module")
def epoch_of(mixture):
    """epoch_of(number, epoch) -> the rows of an epoch that is drawn in ORDERS[number] from end to end."""

    @cache
    def rows(number, epoch):
        return make_sampler(mixture, 3, ORDERS[number : number + 1])(np.arange(epoch * ROWS, (epoch + 1) * ROWS))[
            0
        ].tolist()

    return rows


def stored(orders):
    """The orders as a checkpoint returns them."""
    return tuple(map(OrderSpec.from_json, json.loads(json.dumps([order.to_json() for order in orders]))))


@settings(max_examples=60, deadline=None)
@given(attempts=st.lists(st.tuples(st.integers(0, 90), st.integers(0, len(ORDERS) - 1)), min_size=1, max_size=6))
def test_every_epoch_draws_every_row_once_whatever_changes_between_stops(epoch_of, mixture, attempts):
    orders, position, drawn, wanted_in = (), 0, [], {}
    for samples, number in attempts:
        orders, _ = resumed(stored(orders), ORDERS[number], position, ROWS)
        assert len(orders) <= 2
        begun = range(-(-position // ROWS), -(-(position + samples) // ROWS))
        wanted_in |= dict.fromkeys(begun, number)
        drawn += make_sampler(mixture, 3, orders)(np.arange(position, position + samples))[0].tolist()
        position += samples
    for epoch, start in enumerate(range(0, position, ROWS)):
        found = drawn[start : start + ROWS]
        expected = epoch_of(wanted_in[epoch], epoch)
        assert found == expected[: len(found)] and sorted(expected) == list(range(ROWS))


def test_a_change_is_reported_until_it_takes_effect_and_can_be_withdrawn():
    first, second, third = ORDERS[:3]
    orders, sentence = resumed((), first, 0, ROWS)
    assert (orders, sentence) == ((first,), "")
    orders, sentence = resumed(orders, second, 3 * ROWS + 1, ROWS)
    assert orders == (first, replace(second, from_epoch=4))
    assert sentence == (
        "The order of the samples changes with epoch 4, from blocks of 8 rows, 2 blocks together to blocks of 4 rows, "
        "2 blocks together; epoch 3, which has begun, ends as it began."
    )
    assert resumed(orders, second, 3 * ROWS + 2, ROWS) == (orders, sentence)
    assert resumed(orders, first, 4 * ROWS - 1, ROWS) == ((first,), "")
    assert resumed(orders, third, 4 * ROWS - 1, ROWS)[0] == (first, replace(third, from_epoch=4))
    assert resumed(orders, second, 4 * ROWS + 1, ROWS) == ((replace(second, from_epoch=4),), "")
    orders, sentence = resumed(orders, third, 4 * ROWS, ROWS)
    assert orders == (replace(third, from_epoch=4),) and "epoch 4, from" in sentence and "begun" not in sentence


def test_a_run_older_than_the_global_shuffle_keeps_its_blocks():
    """In a checkpoint from before version 0.1, the state has no order and the configuration no kind of shuffle."""
    checkpoint = KEPT / "zero2/checkpoints/step_00000003"
    state, data = read_state(checkpoint), load_stored_config(KEPT / "zero2/config.toml").data
    assert state.order == () and data.shuffle == "blocks"
    begun = with_stored_order(state, checkpoint).order
    orders, change = resumed(begun, order_of(data), state.samples_seen, 200)
    assert orders == (OrderSpec("blocks", {"block": 64, "window": 64}),) and change == ""


def test_auto_is_decided_once_by_the_slowest_rank(mixture):
    here = Data(train=("/dev/shm",))
    assert settle_shuffle(here, [reason_for_blocks(here)] * 2) == (
        replace(here, shuffle="global"),
        "The order of the samples is a global shuffle (data.shuffle).",
    )
    settled, sentence = settle_shuffle(here, ["", "/mnt/shards is on nfs4, which may be remote"])
    assert settled.shuffle == "blocks" and order_of(settled) == order_of(Data(shuffle="blocks"))
    assert sentence == (
        "The order of the samples is blocks of 64 rows, 64 blocks together, since /mnt/shards is on nfs4, which may "
        "be remote (data.shuffle)."
    )
    afar = Data(train=("/dev/shm", "s3://bucket/shards"))
    assert "s3://bucket/shards is an object store" in settle_shuffle(afar, [reason_for_blocks(afar)])[1]
    whole = Data(train=("/dev/shm",), shuffle_shards=3)
    settled, _ = settle_shuffle(whole, [reason_for_blocks(whole)])
    assert settled.shuffle == "blocks" and order_of(settled) == OrderSpec("shards", {"window": 3})
    for chosen in ("global", "blocks"):
        data = replace(afar, shuffle=chosen)
        assert reason_for_blocks(data) == "" and settle_shuffle(data, ["slow"]) == (data, "")


@pytest.mark.parametrize("pairs", [False, True])
def test_neighbours_in_a_batch_are_as_rare_as_in_a_full_shuffle(tmp_path, monkeypatch, pairs):
    """Compared with numpy's permutation of the rows. Blocks of rows have many; pairs are scattered within a shard."""
    monkeypatch.setattr(near_rows, "LOOKED_AT", 1 << 12)  # each row of the epoch twice, in 64 batches
    rows = [row | {"captions": row["captions"] * (1 + at % 3)} for at, row in enumerate(make_rows(60) * 25)]
    mixture, batch = Mixture([write_shards(tmp_path / "s", rows, 900, 300)], pairs=pairs), 64
    true = np.array([mixture.numbers.visit(number)[0] for number in range(mixture.per_epoch)])
    expected = []
    for drawn in np.array_split(np.random.default_rng(0).permutation(true), mixture.per_epoch // batch):
        near = np.diff(np.sort(drawn)) <= 5
        expected.append(np.mean(np.append(near, False) | np.append(False, near)))
    found = neighbours(mixture, 0, OrderSpec("global"), batch)
    assert found.share == pytest.approx(np.mean(expected), rel=0.3)
    assert found.share < 2 * found.shuffled and found.shuffled < 2 * found.share
    blocks = neighbours(mixture, 0, order_of(Data(shuffle="blocks", shuffle_window=8)), batch)
    assert pairs or blocks.share > 2 * found.share
    assert str(blocks).startswith("The order of the samples is blocks of 64 rows")


def test_an_order_of_another_version_is_refused():
    with pytest.raises(UserError, match="order 'random' of a checkpoint is unknown to this version: update mvlm"):
        OrderSpec.from_json({"kind": "random", "parameters": {}, "from_epoch": 0})
