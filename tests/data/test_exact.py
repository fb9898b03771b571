"""Every global batch has the same hash, whatever reads it and wherever reading starts."""

import hashlib
import itertools
import json
from dataclasses import asdict, replace

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_shards import make_rows, stacked, write_shards
from slow_store import SlowStore
from test_loader import pairs

from mvlm.checkpoint.state import TrainState
from mvlm.data.loading.collate import collate
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.prefetch import start_prefetcher
from mvlm.data.loading.sampler import make_sampler, order_of
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.mixture import Mixture
from tests.conftest import pair_args

GLOBAL = 12
WEIGHTS = (1.0, 2.5)  # 47 + 38 draws of 47 + 15 rows: nothing divides anything


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two corpora, one of them with broken images."""
    out = tmp_path_factory.mktemp("exact")
    rows = make_rows(47)
    for number in (3, 30):
        rows[number]["image"] = b"<html>"
    return [
        write_shards(out / "a", rows, shard_rows=9, batch_rows=4),
        write_shards(out / "b", make_rows(15, seed=8), shard_rows=4),
    ]


@pytest.fixture(scope="module")
def open_dataset(folders, tokenizer, config, tmp_path_factory):
    fsspec.register_implementation("slow", SlowStore, clobber=True)
    cache = Cache(str(tmp_path_factory.mktemp("cache")), 1e-3)

    def opened(place):
        prefix = "slow://" if place == "remote" else ""
        mixture = Mixture([f"{prefix}{folder}" for folder in folders], WEIGHTS, cache)
        return PairDataset(mixture, tokenizer, *pair_args(config), (4, 4))

    return opened


@pytest.fixture(scope="module")
def reference(open_dataset, config, with_shuffle):
    """reference(shuffle, position) -> its digest by the definition, computed one at a time."""
    dataset = open_dataset("local")
    known = {}

    def digest(shuffle, position):
        if (shuffle, position) not in known:
            sampler = make_sampler(dataset.mixture, config.run.seed, [order_of(with_shuffle(shuffle))])
            row, occurrence = sampler(np.array([position]))
            sample = dataset.sample(position, int(row[0]), int(occurrence[0]))
            known[shuffle, position] = pairs(collate([sample], stacked([sample]), dataset.captions))[position]
        return known[shuffle, position]

    return digest


@pytest.fixture(scope="module")
def with_shuffle(config):
    def shuffled(how):
        return replace(config.data, **({"shuffle": how} if isinstance(how, str) else {"shuffle_shards": how}))

    return shuffled


def hashes(steps):
    """The hash of each global batch's pairs in the order of their positions."""
    joined = ["".join(step[position] for position in sorted(step)) for step in steps]
    return [hashlib.sha256(digests.encode()).hexdigest() for digests in joined]


def read(dataset, draws, world, start, steps, **options):
    merged = [{} for _ in range(steps)]
    for rank in range(world):
        prefetcher = start_prefetcher(dataset.mixture, draws, start)
        with Loader(
            dataset,
            draws,
            global_batch=GLOBAL,
            rank=rank,
            world=world,
            start_position=start,
            prefetcher=prefetcher,
            **options,
        ) as loader:
            for step, batches in enumerate(itertools.islice(loader, steps)):
                for batch in batches:
                    merged[step] |= pairs(batch)
    return merged


COMBINATIONS = {
    "place": st.sampled_from(["local", "remote"]),
    "layout": st.sampled_from([(1, 12), (1, 4), (2, 6), (2, 3), (4, 3), (4, 1)]),  # ranks, micro-batch
    "workers": st.sampled_from([0, 1, 3]),
    "mode": st.sampled_from(["threads", "threads", "processes"]),
    "shuffle": st.sampled_from(["global", "blocks", 2]),
    "start": st.integers(0, 180),  # more than two epochs of 85
    "prefetch": st.integers(1, 4),
}


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(**COMBINATIONS)
def test_every_global_batch_has_one_hash(
    open_dataset, reference, config, with_shuffle, place, layout, workers, mode, shuffle, start, prefetch
):
    dataset = open_dataset(place)
    draws = make_sampler(dataset.mixture, config.run.seed, [order_of(with_shuffle(shuffle))])
    world, micro = layout
    options = {"micro_batch": micro, "workers": workers, "worker_mode": mode, "prefetch": prefetch}
    found = read(dataset, draws, world, start, 2, **options)
    first = [range(start + step * GLOBAL, start + (step + 1) * GLOBAL) for step in range(2)]
    expected = [{position: reference(shuffle, position) for position in step} for step in first]
    assert hashes(found) == hashes(expected)


def test_the_state_of_a_stream_is_small_and_the_same_for_local_and_remote_shards(open_dataset):
    fingerprint = open_dataset("local").mixture.fingerprint
    assert fingerprint == open_dataset("remote").mixture.fingerprint
    state = asdict(TrainState(10**7, 10**12, 2**63, fingerprint, skipped=tuple(range(10**12, 10**12 + 10))))
    of_the_stream = {name: state[name] for name in ("samples_seen", "seed", "manifest_fingerprint", "skipped")}
    assert len(json.dumps(of_the_stream)) < 1000
