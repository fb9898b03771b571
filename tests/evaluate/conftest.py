"""The tiny corpus and model, made once per session."""

from dataclasses import replace

import pytest

from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.shards.mixture import Mixture
from tests.conftest import eval_args
from tests.evaluate.tiny import CAPTIONS, CONFIG, make_model, make_shards, make_tokenizer


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("corpus") / "pictures", CAPTIONS)


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def dataset(shards, tokenizer):
    return EvalDataset(Mixture([shards]), tokenizer, *eval_args(CONFIG))


@pytest.fixture(scope="session")
def model():
    return make_model()


@pytest.fixture
def standardizing_model(model):
    """The same weights in a model that reconstructs standardised patches."""
    other = make_model(replace(CONFIG, objectives=replace(CONFIG.objectives, normalized_targets=True)))
    other.load_state_dict(model.state_dict())
    return other
