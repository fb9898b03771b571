import pytest
from transformers import PreTrainedTokenizerBase

from mvlm.data.samples.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["red circle top left, blue star bottom right"] * 5, 300)
