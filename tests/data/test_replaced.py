"""A row with a bad image is replaced by another, the same for every reader; a changed shard is an error."""

import itertools
import shutil
import zlib

import numpy as np
import pytest
import torch
from made_shards import make_rows, write_shards

from mvlm.data.loading.loader import Loader
from mvlm.data.loading.order import MixtureSampler
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from tests.conftest import pair_args

BAD = (4, 17, 18)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """40 rows, of which two never had an image and the image of a third has changed since it was written."""
    rows = make_rows(40)
    for number in BAD:
        rows[number]["image"] = b"<html>"
    for number in BAD[:2]:
        rows[number]["crc32"] = zlib.crc32(b"<html>")
    return write_shards(tmp_path_factory.mktemp("damaged") / "s", rows, shard_rows=16)


def open_dataset(folder, tokenizer, config):
    return PairDataset(Mixture([folder]), tokenizer, *pair_args(config), (4, 4))


def test_a_replacement_depends_only_on_seed_and_position(damaged, tokenizer, config):
    dataset, again = (open_dataset(damaged, tokenizer, config) for _ in range(2))
    samples = [dataset.sample(position, 17) for position in range(30)]
    for position in reversed(range(30)):
        sample = again.sample(position, 17)
        assert sample.row == samples[position].row and (sample.images[0] == samples[position].images[0]).all()
    rows = [sample.row for sample in samples]
    assert not set(rows) & set(BAD) and len(set(rows)) > 12
    # It is augmented differently from the row it repeats, which is seen in the same epoch.
    assert all((sample.images[0] != dataset.sample(sample.position, sample.row).images[0]).any() for sample in samples)


def test_a_replacement_names_the_rows_that_it_replaces(damaged, tokenizer, config):
    dataset = open_dataset(damaged, tokenizer, config)
    assert dataset.sample(0, 3).faults == ()
    first, written = dataset.sample(9, 4).faults[0], dataset.sample(9, 18).faults[0]
    assert (first.row, first.key, first.position) == (4, "k00004", 9)
    assert first.where.endswith("000000.arrow row 4") and "not an image" in first.reason
    assert written.where.endswith("000001.arrow row 2") and "checksum differs" in written.reason
    chains = [dataset.sample(position, 4).faults for position in range(200)]
    longest = max(chains, key=len)
    assert len(longest) > 1 and {fault.row for fault in longest} <= set(BAD)  # a bad row was replaced by another


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (3, 2)])
def test_the_loader_reports_faults_with_their_batch(damaged, tokenizer, config, workers, world):
    dataset, draws = open_dataset(damaged, tokenizer, config), MixtureSampler([40], [1.0], 7, 8, 4)
    faults = []
    for rank in range(world):
        options = {"global_batch": 8, "micro_batch": 4, "rank": rank, "world": world, "workers": workers}
        with Loader(dataset, draws, **options) as loader:
            for step, batches in enumerate(itertools.islice(loader, 10)):
                drawn = [p for batch in batches for p in batch.position_B.tolist() if draws(np.array([p]))[0][0] in BAD]
                assert sorted({fault.position for fault in loader.faults}) == drawn, step
                assert not set(torch.cat([batch.image_id_B for batch in batches]).tolist()) & set(BAD)
                faults += loader.faults
                loader.faults.clear()
    drawn = [fault.row for fault in faults if draws(np.array([fault.position]))[0][0] == fault.row]
    assert sorted(drawn) == sorted(2 * BAD)


def test_a_corpus_of_bad_images_ends_in_an_error(tmp_path, tokenizer, config):
    rows = [row | {"image": b"<html>"} for row in make_rows(5)]
    dataset = open_dataset(write_shards(tmp_path / "s", rows), tokenizer, config)
    with pytest.raises(UserError, match=r"000000\.arrow row 2 \(key 'k00002'\).*checksum.*50 rows drawn"):
        dataset.sample(0, 2)


def test_an_image_in_a_shard_that_is_being_changed_is_not_replaced(folder, rows, tmp_path, tokenizer, config):
    copy = shutil.copytree(folder, tmp_path / "copy")
    dataset = open_dataset(copy, tokenizer, config)
    shard = copy / "000000.arrow"
    png = rows[2]["image"]
    at = shard.read_bytes().index(png)
    dataset.sample(0, 2)
    with open(shard, "r+b") as file:
        file.seek(at + 60)
        file.write(bytes(140))
    with pytest.raises(UserError, match=r"000000\.arrow row 2 \(key 'k00002'\).*checksum differs.*written to since"):
        dataset.sample(0, 2)
    # A dataset opened now cannot know that the shard has changed.
    assert open_dataset(copy, tokenizer, config).sample(0, 2).faults[0].row == 2


@pytest.mark.parametrize("change", ["touched", "cut", "removed"])
def test_a_shard_changed_before_it_is_first_read_is_named(folder, tmp_path, change):
    copy = shutil.copytree(folder, tmp_path / "copy")
    mixture = Mixture([copy])
    shard = copy / "000001.arrow"
    content = shard.read_bytes()
    shard.unlink()
    if change != "removed":
        shard.write_bytes(content if change == "touched" else content[:-50])
    assert mixture.changed(60) and not mixture.changed(10)
    with pytest.raises(UserError, match=r"000001\.arrow (was written to since|has \d+ bytes|is missing)"):
        mixture.row(60)
