"""Opening costs the same for a million rows and for a billion, but for the manifest itself."""

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
    """A corpus of `count` shards; of the first ones there are files without content."""
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


def held_bytes(make):
    """Of what `make` returns, and at most while it is made."""
    make()  # whatever is made once in a process
    tracemalloc.start()
    kept = make()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return held, peak


def test_a_billion_rows_are_held_in_a_few_megabytes(corpora):
    small, large = (Mixture([folder]) for folder in corpora)
    assert len(large) == 10**9 == 1000 * len(small)
    held, peak = held_bytes(lambda: Mixture([corpora[1]]))
    text = (corpora[1] / MANIFEST).stat().st_size
    assert held < 8e6 and peak < held + 5 * text
    assert len(pickle.dumps(large)) < 5e6  # what a loader process gets


def test_no_more_than_some_files_are_looked_at(corpora, monkeypatch):
    asked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: asked.append(path) or stat(path, **options))
    counts = []
    for folder in corpora:
        asked.clear()
        Mixture([folder])
        counts.append(len(asked))
    assert counts[0] >= 50 and counts[1] <= counts[0] - 50 + LOOKED_AT
    with pytest.raises(UserError, match=r"large/040000\.arrow is missing: 20000 rows"):
        Mixture([corpora[1]]).row(40_000 * ROWS + 3)


@pytest.mark.parametrize("shuffle", [{"shuffle": "global"}, {"shuffle": "blocks"}, {"shuffle_shards": 16}])
def test_a_batch_is_drawn_at_the_same_cost(corpora, shuffle):
    peaks = []
    for folder in corpora:
        draws = make_sampler(Mixture([folder]), 0, [order_of(Data(**shuffle))])
        places = 7 * draws.per_epoch + np.arange(draws.per_epoch - 512, draws.per_epoch)
        peaks.append(held_bytes(lambda draws=draws, places=places: draws(places))[1])
    kept = 0.4e6 * ("shuffle_shards" in shuffle)  # the shuffled shards, for an epoch
    assert peaks[1] < 1.1 * peaks[0] + kept
