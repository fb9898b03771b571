"""One stream of global batches, whatever reads it; exact resume; no thread left running and no error lost."""

import hashlib
import itertools
import threading
import time
from dataclasses import fields

import pytest
import torch
from made_shards import make_rows, stacked, write_shards

from mvlm.data.loading.collate import collate
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.order import MixtureSampler
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from tests.conftest import pair_args

GLOBAL = 16
STEPS = 10  # 160 positions of 130 rows: into the second epoch


@pytest.fixture(scope="module")
def draws(dataset, config):
    return MixtureSampler([len(dataset)], [1.0], config.run.seed, config.data.shuffle_block, config.data.shuffle_window)


def digest(batch, row):
    """The hash of all fields of a pair, without padding."""
    hash = hashlib.sha256()
    valid = batch.valid_BL[row]
    for field in fields(batch):
        if field.name in ("masked", "packing"):
            continue  # derived from the others
        value = getattr(batch, field.name)[row]
        if field.name.endswith("_BL") and field.name != "valid_BL":
            value = value[valid]
        elif field.name == "valid_BL":
            value = valid.sum()
        hash.update(value.numpy().tobytes())
    return hash.hexdigest()


def pairs(batch):
    return {int(position): digest(batch, row) for row, position in enumerate(batch.position_B)}


def stream(dataset, draws, steps=STEPS, start=0, world=1, **options):
    """For each step the digests by position, of all ranks."""
    options = {"global_batch": GLOBAL, "micro_batch": 4, "workers": 0} | options
    merged = [{} for _ in range(steps)]
    for rank in range(world):
        with Loader(dataset, draws, rank=rank, world=world, start_position=start, **options) as loader:
            for step, micro_batches in enumerate(itertools.islice(loader, steps)):
                assert len(micro_batches) == loader.accumulation
                for batch in micro_batches:
                    assert len(batch) == options["micro_batch"]
                    assert not merged[step].keys() & pairs(batch).keys()
                    merged[step] |= pairs(batch)
    return merged


@pytest.fixture(scope="module")
def reference(dataset, draws):
    """The stream by its definition, without a loader."""
    steps = [range(step * GLOBAL, (step + 1) * GLOBAL) for step in range(STEPS)]
    rows, occurrences = draws(torch.arange(STEPS * GLOBAL).numpy())
    samples = [[dataset.sample(at, int(rows[at]), int(occurrences[at])) for at in step] for step in steps]
    return [pairs(collate(step, stacked(step), dataset.captions)) for step in samples]


LAYOUTS = [(1, 0, 16), (1, 1, 4), (1, 3, 2), (2, 0, 2), (2, 1, 8), (2, 3, 4), (4, 0, 4), (4, 1, 1), (4, 3, 2)]


@pytest.mark.parametrize(("world", "workers", "micro"), LAYOUTS)
def test_global_batches_do_not_depend_on_ranks_workers_and_micro_batches(
    dataset, draws, reference, world, workers, micro
):
    assert stream(dataset, draws, world=world, workers=workers, micro_batch=micro) == reference


@pytest.mark.parametrize(("world", "workers", "micro"), [(1, 1, 16), (1, 3, 4), (2, 3, 8)])
def test_global_batches_are_the_same_if_processes_prepare_them(dataset, draws, reference, world, workers, micro):
    options = {"world": world, "workers": workers, "micro_batch": micro, "worker_mode": "processes"}
    assert stream(dataset, draws, **options) == reference


def test_each_row_is_visited_once_per_epoch(dataset, draws):
    with Loader(dataset, draws, global_batch=13, micro_batch=13, workers=0) as loader:
        seen = [batch.image_id_B.tolist() for (batch,) in itertools.islice(loader, 20)]
    for epoch in (seen[:10], seen[10:]):
        assert sorted(itertools.chain(*epoch)) == list(range(130))
    assert seen[:10] != seen[10:]


def test_each_rank_gets_its_part_of_each_micro_batch(dataset, draws):
    with Loader(dataset, draws, global_batch=16, micro_batch=2, rank=1, world=4, workers=2) as loader:
        next(loader)
        micro_batches = next(loader)
    assert [batch.position_B.tolist() for batch in micro_batches] == [[18, 19], [26, 27]]


@pytest.mark.parametrize("step", range(STEPS))
def test_resuming_at_any_step_continues_exactly(dataset, draws, reference, step):
    rest = stream(dataset, draws, steps=STEPS - step, start=step * GLOBAL, workers=2)
    assert rest == reference[step:]


def test_resuming_with_another_global_batch_misses_no_position(dataset, draws, reference):
    rest = stream(dataset, draws, steps=3, start=3 * GLOBAL, global_batch=24, micro_batch=8)
    merged = {position: value for step in rest for position, value in step.items()}
    expected = {position: value for step in reference for position, value in step.items()}
    assert merged == {position: expected[position] for position in range(48, 48 + 72)}


@pytest.mark.parametrize("world", [1, 2])
def test_skipped_batches_do_not_change_others(dataset, draws, reference, world):
    skipped = {0, 4 * GLOBAL, 5 * GLOBAL}
    rest = stream(dataset, draws, steps=STEPS - 3, world=world, workers=2, skip=skipped)
    assert rest == [step for number, step in enumerate(reference) if number * GLOBAL not in skipped]


def test_the_position_of_the_loader_is_where_its_batch_begins(dataset, draws):
    with Loader(dataset, draws, global_batch=GLOBAL, micro_batch=4, world=2, rank=1, skip={16, 32}) as loader:
        starts = [
            (loader.position, int(micro_batches[0].position_B[0])) for micro_batches in itertools.islice(loader, 3)
        ]
    assert starts == [(0, 4), (48, 52), (64, 68)]


def test_a_batch_that_does_not_divide_is_refused(dataset, draws):
    with pytest.raises(UserError, match=r"global_batch = 16 .*micro-batches of 3 on 2"):
        Loader(dataset, draws, global_batch=16, micro_batch=3, world=2)


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("mvlm-data")]


def test_closing_a_loader_ends_its_threads_and_stream(dataset, draws):
    with Loader(dataset, draws, global_batch=8, micro_batch=8, workers=3, prefetch=4) as loader:
        next(loader)
        assert data_threads()
    assert not data_threads()
    assert list(loader) == []
    loader.close()


class Slow:
    """A dataset that takes `seconds` for each sample, and records the positions asked for and prepared."""

    def __init__(self, dataset, seconds=0.0):
        self.dataset, self.seconds, self.asked, self.prepared = dataset, seconds, [], []
        self.captions, self.image_shape = dataset.captions, dataset.image_shape

    def samples(self, draws, images):
        positions = [position for position, _, _ in draws]
        self.asked += positions
        time.sleep(self.seconds * len(draws))
        samples = self.dataset.samples(draws, images)
        self.prepared += positions
        return samples


def wait_until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_more_batches_are_prepared_than_prefetch_allows(dataset, draws):
    slow = Slow(dataset)
    with Loader(slow, draws, global_batch=8, micro_batch=4, workers=3, prefetch=2) as loader:
        for step in range(1, 4):
            next(loader)
            expected = 8 * step + 2 * 4
            wait_until(lambda expected=expected: len(slow.asked) >= expected)
            time.sleep(0.05)
            assert len(slow.asked) == expected


def test_waiting_time_is_counted(dataset, draws):
    slow = Slow(dataset, 0.2)
    with Loader(slow, draws, global_batch=4, micro_batch=4, workers=2, prefetch=2) as loader:
        assert loader.wait_seconds == 0
        next(loader)
        first = loader.wait_seconds
        assert first > 0.39  # four samples on two threads
        wait_until(lambda: len(slow.prepared) >= 2 * 4)
        next(loader)
        assert loader.wait_seconds - first < 0.3


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_in_a_thread_is_raised_at_its_step(tmp_path, tokenizer, config, workers):
    folder = write_shards(tmp_path / "s", make_rows(40), shard_rows=1)
    shard = folder / "000017.arrow"
    shard.write_bytes(bytes(shard.stat().st_size))
    dataset = PairDataset(Mixture([folder]), tokenizer, *pair_args(config), (4, 4))
    draws = MixtureSampler([40], [1.0], 0, 4, 4)
    bad_step = int((draws(torch.arange(40).numpy())[0] == 17).argmax()) // 4
    delivered = 0
    loader = Loader(dataset, draws, global_batch=4, micro_batch=4, workers=workers, prefetch=3)
    with pytest.raises(UserError, match=r"000017\.arrow cannot be read"), loader:
        for _ in loader:
            delivered += 1
    assert delivered == bad_step
    assert not data_threads()


def test_an_exception_in_the_consumer_ends_the_threads(dataset, draws):
    loader = Loader(dataset, draws, global_batch=16, micro_batch=16, workers=2, prefetch=6)
    with pytest.raises(KeyboardInterrupt), loader:
        next(loader)
        raise KeyboardInterrupt
    assert not data_threads()
