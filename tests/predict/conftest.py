"""The tiny model with random weights, and pictures of a user."""

import numpy as np
import pytest
from PIL import Image

from mvlm.data.samples.pictures import Pictures
from mvlm.pretrained.runs import Loaded
from tests.evaluate.tiny import CAPTIONS, CONFIG, make_model, make_tokenizer

SENTENCES = [caption for of_image in CAPTIONS for caption in of_image]


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return Loaded(make_model(), folder, CONFIG.blueprint, CONFIG.data, CONFIG.eval, step=7)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(1)
    paths = [folder / f"{name}.png" for name in ("a", "b", "c", "d")]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return tuple(paths)


@pytest.fixture(scope="session")
def pictures(files):
    return Pictures(files, SENTENCES, make_tokenizer(), CONFIG.data.text_length, CONFIG.model.image_size)
