"""The loader for users' own training loops: one stream on any number of ranks, which resumes within an epoch."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from made_shards import write_shards

from mvlm.data import CaptionLoader
from mvlm.errors import UserError

SIZE = 32


def pairs(batches):
    """The sorted captions and image digests of each batch."""
    found = []
    for images_BCHW, captions in batches:
        assert images_BCHW.shape[1:] == (3, SIZE, SIZE) and len(captions) == len(images_BCHW)
        digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images_BCHW]
        found.append(sorted(zip(captions, digests, strict=True)))
    return found


def loader(folder, **options):
    return CaptionLoader(folder, **{"batch": 16, "image_size": SIZE, "seed": 3, "workers": 1} | options)


def test_two_ranks_read_the_same_batches_as_one_and_resume_on_one(folder, rows):
    with loader(folder) as alone:
        epochs = [pairs(alone) for _ in range(2)]
    per_epoch = sum(len(row["captions"]) for row in rows)
    assert [len(epoch) for epoch in epochs] == [alone.num_batches] * 2 == [per_epoch // 16] * 2
    assert alone.num_samples == len(alone) * 16
    of_ranks = []
    for rank in range(2):
        with loader(folder, batch=8, rank=rank, world=2) as one:
            batches = iter(one)
            of_ranks.append(pairs(next(batches) for _ in range(5)))
            state = one.state_dict()
    assert [sorted(a + b) for a, b in zip(*of_ranks, strict=True)] == epochs[0][:5]
    resumed = loader(folder)
    resumed.load_state_dict(state)
    assert pairs(resumed) == epochs[0][5:] and pairs(resumed) == epochs[1]
    resumed.close()


def test_an_epoch_has_every_pair_once(folder, rows):
    """In batches of one, since pairs that do not fill a batch begin the next epoch."""
    expected = sorted(caption for row in rows for caption in row["captions"])
    whole = {"crop_scale": (1.0, 1.0), "randaugment": (0, 0)}
    with loader(folder, batch=1, collate=lambda images, captions: captions, **whole) as one_by_one:
        assert sorted(caption for captions in one_by_one for caption in captions) == expected


def test_a_state_of_another_stream_is_refused_with_the_reason(folder, rows, tmp_path):
    other = loader(write_shards(tmp_path / "other", rows[:40]))
    for state, message in (
        (other.state_dict(), "for other data"),
        (loader(folder, seed=4).state_dict(), "for another seed"),
        (loader(folder, shuffle="blocks").state_dict(), "for another shuffle or epoch"),
        (loader(folder, epoch="images").state_dict(), "for another shuffle or epoch"),
        (loader(folder).state_dict() | {"samples_seen": 24}, "24 samples, not a multiple of 16"),
    ):
        with pytest.raises(UserError, match=message):
            loader(folder).load_state_dict(state)
    with pytest.raises(UserError, match=r"crop_scal.*crop_scale"):
        loader(folder, crop_scal=(1.0, 1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world": 2}, "rank 2 of 2: give ranks from 0 up to"),
        ({"rank": -1}, "-1 cannot be `rank`"),
        ({"batch": 0}, "0 cannot be `batch`"),
        ({"image_size": 32.5}, "32.5 cannot be `image_size`"),
        ({"seed": None}, "seed is None: give a whole number"),
    ],
)
def test_ranks_counted_from_one_and_invalid_numbers_are_refused(folder, options, message):
    """Rank 2 of 2 would read what rank 0 reads a batch later."""
    with pytest.raises(UserError, match=message):
        loader(folder, **options)


def test_numpy_numbers_are_accepted_and_the_state_is_one_that_torch_loads(folder, tmp_path):
    numbers = {"batch": np.int64(16), "seed": np.int64(3), "workers": np.int64(1), "crop_scale": np.array([0.5, 1.0])}
    with loader(folder, **numbers) as given, loader(folder, crop_scale=(0.5, 1.0)) as plain:
        assert pairs([next(iter(given))]) == pairs([next(iter(plain))])
        torch.save(given.state_dict(), tmp_path / "loader.pt")
        given.load_state_dict(torch.load(tmp_path / "loader.pt"))
        assert given.state_dict() == plain.state_dict()


def test_loader_processes_import_the_package_without_torch():
    loaded = "import mvlm.data.samples.dataset, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "False\n"
