"""Every flipped bit in a row is noticed by the epoch that reads it, and no such row is trained on."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.data.corpus import captions, photo
from benchmarks.data.flips import BATCH, campaign, opened
from benchmarks.data.formats import write_mvlm


@pytest.fixture(scope="module")
def flipped(tmp_path_factory):
    """A corpus and the result of a campaign on it; its images are small, so that many flips hit texts and numbers."""
    whole = tmp_path_factory.mktemp("flips") / "whole"
    images = [photo(number, (48, 36), 60) for number in range(20)]
    write_mvlm(((f"{n:06d}", images[n % 20], captions(n)) for n in range(2 * BATCH)), whole, 40_000)
    return whole, campaign(whole, 90, seed=3)


@pytest.mark.parametrize("epoch", ["images", "pairs"])
def test_an_epoch_notices_all_flips_and_returns_none_of_their_rows(flipped, epoch):
    _, found = flipped
    assert 70 < found["in rows"] <= found["flips"] == 90 and found["damaged rows"] > 40
    of_epoch = found[f"an epoch of {epoch}"]
    assert of_epoch["samples"] == (1 if epoch == "images" else 3) * 2 * BATCH
    assert of_epoch["flips noticed"] == found["in rows"]
    assert of_epoch["samples that are not right"] == 0


def test_a_stream_of_damaged_rows_resumes_exactly(flipped):
    damaged: Path = flipped[0].with_name("damaged")
    with opened(damaged, "pairs") as stream:
        expected = list(itertools.islice(stream, 4))
        faults = [str(fault) for fault in stream.faults if fault.position >= 2 * BATCH]
    with opened(damaged, "pairs", start=2 * BATCH) as stream:
        for (batch,), (other,) in zip(itertools.islice(stream, 2), expected[2:], strict=True):
            assert torch.equal(batch.image_BCHW, other.image_BCHW) and torch.equal(batch.text_BL, other.text_BL)
            assert np.array_equal(batch.position_B, other.position_B)
        assert [str(fault) for fault in stream.faults] == faults != []
