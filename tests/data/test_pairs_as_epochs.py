"""An epoch of pairs shows each image with each of its captions exactly once, whatever happens in between."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import make_rows, write_shards

from data_tools.row_index import add_indexes
from mvlm.checkpoint.state import OrderSpec
from mvlm.config.schema import Data
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.sampler import make_sampler, order_of, resumed
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.columns import DamagedRow, ShardRows
from mvlm.data.shards.files import UNCOUNTED
from mvlm.data.shards.mixture import Mixture, training_mixture
from mvlm.data.shards.row_index import RowIndex
from mvlm.data.shards.schema import read_manifest
from mvlm.errors import UserError
from tests.conftest import pair_args

ROWS = 60
ORDERS = [
    order_of(data)
    for data in (
        Data(shuffle="blocks", shuffle_block=8, shuffle_window=2),
        Data(shuffle="blocks", shuffle_block=5),
        Data(shuffle_shards=2),
        Data(shuffle="global"),
    )
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs")
    return [write_shards(out / "a", make_rows(ROWS // 2, 1), 7, 3), write_shards(out / "b", make_rows(ROWS // 2, 2), 8)]


@pytest.fixture(scope="module")
def pairs(folders):
    return Mixture(folders, pairs=True)


@pytest.fixture(scope="module")
def all_pairs(folders):
    mixture = Mixture(folders)
    return [(row, caption) for row in range(ROWS) for caption in range(len(mixture.row(row).captions))]


def test_pairs_are_numbered_by_row_and_then_by_caption(pairs, all_pairs):
    assert [pairs.numbers.visit(number) for number in range(len(all_pairs))] == all_pairs
    assert pairs.per_epoch == len(all_pairs) == sum(corpus.manifest.captions for corpus in pairs.corpora)
    with pytest.raises(IndexError):
        pairs.numbers.visit(len(all_pairs))


@settings(max_examples=40, deadline=None)
@given(attempts=st.lists(st.tuples(st.integers(0, 200), st.sampled_from(ORDERS)), min_size=1, max_size=5))
def test_every_epoch_draws_every_pair_once_whatever_changes_between_stops(pairs, all_pairs, attempts):
    orders, position, drawn, epoch = (), 0, [], pairs.per_epoch
    for samples, wanted in attempts:
        stored = tuple(map(OrderSpec.from_json, json.loads(json.dumps([order.to_json() for order in orders]))))
        orders, _ = resumed(stored, wanted, position, epoch)
        drawn += make_sampler(pairs, 3, orders)(np.arange(position, position + samples))[0].tolist()
        position += samples
    for begin in range(0, position, epoch):
        found = [pairs.numbers.visit(number) for number in drawn[begin : begin + epoch]]
        assert len(set(found)) == len(found)
        assert len(found) < epoch or sorted(found) == all_pairs


def test_weights_count_pairs(folders):
    mixture = Mixture(folders, (1.0, 2.5), pairs=True)
    sizes = [corpus.manifest.captions for corpus in mixture.corpora]
    assert mixture.per_epoch == sizes[0] + round(2.5 * sizes[1])
    draws, drawn = make_sampler(mixture, 1, [order_of(Data())]), Counter()
    for epoch in range(2):
        at = np.arange(epoch * mixture.per_epoch, (epoch + 1) * mixture.per_epoch)
        drawn.update(map(mixture.numbers.visit, draws(at)[0].tolist()))
    assert {times for (row, _), times in drawn.items() if row < ROWS // 2} == {2}
    assert {times for (row, _), times in drawn.items() if row >= ROWS // 2} <= {4, 5, 6}


def test_with_one_caption_per_image_epochs_of_pairs_and_images_are_the_same(tmp_path):
    rows = [row | {"captions": row["captions"][:1]} for row in make_rows(40)]
    folder = write_shards(tmp_path / "one", rows, 9)
    drawn = [
        make_sampler(training_mixture(Data(train=(str(folder),), epoch=epoch)), 5, [order_of(Data())])(np.arange(100))
        for epoch in ("pairs", "images")
    ]
    for of_pairs_epoch, of_images_epoch in zip(*drawn, strict=True):
        assert np.array_equal(of_pairs_epoch, of_images_epoch)


def test_the_loader_shows_each_image_with_each_caption_once_and_in_different_crops(folders, tokenizer, config):
    """With threads and with processes, and from the middle on."""
    shown = replace(config, data=replace(config.data, train=tuple(map(str, folders)), randaugment=(0, 0)))
    mixture = training_mixture(shown.data)
    dataset = PairDataset(mixture, tokenizer, *pair_args(shown), (4, 4))
    draws = make_sampler(mixture, shown.run.seed, [order_of(shown.data)])
    batches = mixture.per_epoch // 4

    def texts(mode, start):
        with Loader(
            dataset, draws, global_batch=4, micro_batch=4, worker_mode=mode, start_position=start * 4
        ) as loader:
            found = [next(loader)[0] for _ in range(start, batches)]
        return [(batch.text_BL.tolist(), batch.patch_mask_BN.tolist()) for batch in found]

    whole = texts("threads", 0)
    assert texts("threads", 7) == whole[7:] and texts("processes", batches - 2) == whole[-2:]
    samples = [dataset.sample(position, int(draws(np.array([position]))[0][0])) for position in range(batches * 4)]
    read = Counter((sample.row, tuple(sample.text_L)) for sample in samples)
    written = Counter(
        (row, tuple(dataset.captions.encode(caption))) for row in range(ROWS) for caption in mixture.row(row).captions
    )
    assert not read - written and sum(read.values()) == batches * 4 > mixture.per_epoch - 4
    views = {sample.images[0].tobytes() for sample in samples}
    assert len(views) > 0.95 * len(samples) > ROWS  # an image that comes again is cropped differently


def test_pairs_of_the_same_image_are_not_neighbours(tmp_path):
    """In 512 draws from blocks of one shard, images repeat hardly more often than in a full shuffle."""
    rows = [row | {"captions": [f"{row['key']} {n}" for n in range(5)]} for row in make_rows(400)]
    mixture = Mixture([write_shards(tmp_path / "five", rows, 400)], pairs=True)
    draws = make_sampler(mixture, 0, [order_of(Data(shuffle="blocks", shuffle_block=64, shuffle_window=8))])
    images = [mixture.numbers.visit(number)[0] for number in draws(np.arange(512))[0].tolist()]
    shuffled = np.random.default_rng(0).permutation(2000)[:512] // 5
    assert len(set(images)) > 0.95 * len(set(shuffled.tolist()))


def test_a_manifest_without_counts_of_captions_gets_them_with_the_index(folders, tmp_path, all_pairs):
    folder = shutil.copytree(folders[0], tmp_path / "counted")
    assert set(read_manifest(folder).shards.captions) == {UNCOUNTED}
    with pytest.raises(UserError, match=r"does not count the captions .* row-index.* data\.epoch = 'images'"):
        Mixture([f"file://{folder}"], cache=Cache(str(tmp_path / "cache")), pairs=True)
    assert add_indexes(folder) == 5 and add_indexes(folder) == 0
    manifest = read_manifest(folder)
    rows = make_rows(ROWS // 2, 1)
    counts = [sum(len(row["captions"]) for row in rows[at : at + 7]) for at in range(0, len(rows), 7)]
    assert list(manifest.shards.captions) == counts
    remote = Mixture([f"file://{folder}"], cache=Cache(str(tmp_path / "cache")), pairs=True)
    number = next(number for number, (row, _) in enumerate(all_pairs) if row == 20)
    remote.numbers.fetch(number)
    assert remote.cache.holds(manifest.shards[2]) and not remote.cache.holds(manifest.shards[0])
    assert remote.numbers.visit(number) == (20, 0)
    edited = (folder / "manifest.json").read_text().replace(f'"captions": {counts[1]}', f'"captions": {counts[1] + 1}')
    (folder / "manifest.json").write_text(edited)
    with pytest.raises(UserError, match="contradicts itself"):
        read_manifest(folder)


def test_no_damaged_number_shows_a_caption_with_another_image(folders, tmp_path, tokenizer, config):
    """Whatever bit of the captions' offsets flips, a pair is one that was written, or its row is replaced and named."""
    folder = shutil.copytree(folders[0], tmp_path / "damaged")
    add_indexes(folder)
    written = {(row["key"], caption) for row in make_rows(ROWS // 2, 1) for caption in row["captions"]}
    sound = Mixture([folder], pairs=True)
    opened = sound.corpora[0]._open_shard(0)
    where = opened.rows._buffers[opened.rows._layout.firsts[opened.rows._layout.captions]]
    shown = [sound.numbers.visit(number)[0] for number in range(6)]
    rng, path = np.random.default_rng(3), folder / "000000.arrow"
    content = path.read_bytes()
    for _ in range(60):
        at, bit = where + int(rng.integers(16)), int(rng.integers(8))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        dataset = PairDataset(Mixture([folder], pairs=True), tokenizer, *pair_args(config), (4, 4))
        now = dataset.mixture.corpora[0]._open_shard(0).rows
        for number in range(6):
            sample = dataset.sample(number, number)
            if 4 <= at - where < 12 and now.is_sound(shown[number]):  # except where the batch begins or ends
                assert (sample.row, sample.faults) == (shown[number], ())
            row = dataset.mixture.row(sample.row)
            texts = {tuple(dataset.captions.encode(text)) for key, text in written if key == row.key}
            assert tuple(sample.text_L) in texts
            assert all("checksum differs" in f.reason or "outside" in f.reason for f in sample.faults)
    path.write_bytes(content)


def test_no_flipped_offset_shifts_a_pair(folders, tmp_path):
    """Whichever bit of the captions' offsets flips, also at the borders of record batches."""
    folder = shutil.copytree(folders[0], tmp_path / "shifted")
    add_indexes(folder)
    path = folder / "000000.arrow"
    content = path.read_bytes()
    sound = Mixture([folder], pairs=True).corpora[0]._open_shard(0).rows
    pairs = [sound.row_of_pair(pair) for pair in range(sound.captions())]
    stride, first = sound._layout.firsts[-1], sound._layout.firsts[sound._layout.captions]
    index = RowIndex(sound._starts, sound._buffers, sound._crc32)
    batches, damaged = len(index.starts) - 1, 0
    assert batches == 3
    for batch in range(batches):
        begin, end = index.starts[batch], index.starts[batch + 1]
        for nth, bit in product(range(end - begin + 1), range(32)):
            data = bytearray(content)
            data[index.buffers[batch * stride + first] + 4 * nth + bit // 8] ^= 1 << bit % 8
            now = ShardRows(memoryview(data), "caption", index)
            beside = {begin + nth - 1, begin + nth} & {*range(begin, end)}  # rows whose captions begin or end there
            assert now.captions() == len(pairs)
            for pair, expected in enumerate(pairs):
                try:
                    found = now.row_of_pair(pair)
                    now.row(found[0])
                    assert found == expected and expected[0] not in beside
                except DamagedRow:
                    assert expected[0] in beside
                    damaged += 1
    assert damaged


def test_a_pair_outside_of_its_shard_is_refused(folders):
    opened = Mixture(folders, pairs=True).corpora[0]._open_shard(0)
    assert isinstance(opened.rows, ShardRows)
    with pytest.raises(ValueError, match="outside"):
        opened.rows.row_of_pair(opened.rows.captions())
