"""A small corpus, its tokenizer and its dataset."""

from dataclasses import replace

import pytest
from made_shards import make_rows, write_shards

from mvlm.config.schema import Config, Data, Model, Objectives, Run
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.samples.tokenizer import train_tokenizer
from mvlm.data.shards.mixture import Mixture
from tests.conftest import pair_args


@pytest.fixture(scope="session")
def rows():
    return make_rows(130)


@pytest.fixture(scope="session")
def folder(rows, tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("corpus") / "shards", rows)


@pytest.fixture(scope="session")
def mixture(folder):
    return Mixture([folder])


@pytest.fixture(scope="session")
def tokenizer(rows):
    return train_tokenizer([caption for row in rows for caption in row["captions"]], 500)


@pytest.fixture(scope="session")
def config():
    return Config(
        run=Run(seed=7),
        data=Data(text_length=14, shuffle_block=8, shuffle_window=4),
        model=Model(image_size=32),
        objectives=Objectives(image_mask_block=2),
    )


@pytest.fixture(scope="session")
def dataset(mixture, tokenizer, config):
    return PairDataset(mixture, tokenizer, *pair_args(config), (4, 4))


@pytest.fixture
def with_data(config):
    """The configuration with values of its `data` table replaced."""
    return lambda **changes: replace(config, data=replace(config.data, **changes))
