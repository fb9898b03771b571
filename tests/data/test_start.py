"""Opening costs the same for a million rows and for a billion, except for reading the manifest."""

import hashlib
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mvlm.config.schema import Data
from mvlm.data.loading.sampler import make_sampler, order_of
from mvlm.data.shards.files import Shard, Shards
from mvlm.data.shards.location import LOOKED_AT
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.schema import MANIFEST, Manifest
from mvlm.errors import UserError

ROWS, BYTES = 20_000, 10**9


def simulated(folder: Path, count: int) -> Path:
    """A corpus of `count` shards, of which only the first exist, as sparse files."""
    folder.mkdir()
    hashes = (hashlib.sha256(str(n).encode()).hexdigest() for n in range(count))
    shards = [Shard(f"{n:06d}.arrow", ROWS, BYTES, digest) for n, digest in enumerate(hashes)]
    for shard in shards[:LOOKED_AT]:
        with open(folder / shard.file, "wb") as file:
            file.truncate(BYTES)
    (folder / MANIFEST).write_text(Manifest(ROWS * count, ROWS * count, 0, Shards(shards)).to_json())
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulated")
    return simulated(out / "small", 50), simulated(out / "large", 50_000)


@pytest.fixture(scope="module")
def mixtures(corpora):
    return [Mixture([folder]) for folder in corpora]


def traced_bytes(make):
    """The memory of what `make` returns, and the peak while it runs; what a process makes once must have been made."""
    tracemalloc.start()
    kept = make()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return held, peak


def test_a_billion_rows_are_held_in_a_few_megabytes(corpora, mixtures):
    small, large = mixtures
    assert len(large) == 10**9 == 1000 * len(small)
    held, peak = traced_bytes(lambda: Mixture([corpora[1]]))
    text = (corpora[1] / MANIFEST).stat().st_size
    assert held < 8e6 and peak < held + 5 * text
    assert len(pickle.dumps(large)) < 5e6  # what a loader process gets


def test_a_bounded_number_of_files_is_looked_at(corpora, mixtures, monkeypatch):
    looked_at, stat = [], os.stat

    def recorded(path, **options):
        looked_at.append(path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", recorded)
    counts = []
    for folder in corpora:
        looked_at.clear()
        Mixture([folder])
        counts.append(len(looked_at))
    assert counts[0] >= 50 and counts[1] <= counts[0] - 50 + LOOKED_AT
    with pytest.raises(UserError, match=r"large/040000\.arrow is missing: 20000 rows"):
        mixtures[1].row(40_000 * ROWS + 3)


@pytest.mark.parametrize("shuffle", [{"shuffle": "global"}, {"shuffle": "blocks"}, {"shuffle_shards": 16}])
def test_drawing_a_batch_costs_the_same(mixtures, shuffle):
    peaks = []
    for mixture in mixtures:
        draws = make_sampler(mixture, 0, [order_of(Data(**shuffle))])
        positions = 7 * draws.per_epoch + np.arange(draws.per_epoch - 512, draws.per_epoch)
        draws(positions)
        peaks.append(traced_bytes(lambda draws=draws, positions=positions: draws(positions))[1])
    order_of_shards = 0.4e6 if "shuffle_shards" in shuffle else 0.0  # kept for an epoch
    assert peaks[1] < 1.1 * peaks[0] + order_of_shards
