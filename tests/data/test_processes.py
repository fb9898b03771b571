"""Loader processes: small, ended with their parent, their errors reported, and nothing left behind."""

import itertools
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from broken import Broken
from made_shards import make_rows, write_shards

from mvlm.config.schema import Data, Objectives
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.order import MixtureSampler
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.samples.tokenizer import train_tokenizer
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import DataLost, UserError
from tests.conftest import pair_args
from tests.ranks import Copy

DRAWS = MixtureSampler([130], [1.0], 7, 8, 4)


def opened(dataset, workers=2, draws=DRAWS, **options):
    options = {"global_batch": 16, "micro_batch": 8} | options
    return Loader(dataset, draws, workers=workers, worker_mode="processes", **options)


def children():
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(holds, seconds=100):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def private_mb(pid):
    """Without buffers and mapped shards, whose pages count as private while only one process has touched them."""
    total, counts = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            counts = "mvlm-images" not in line and ".arrow" not in line
        elif counts and name.startswith("Private_"):
            total += int(values[0])
    return total / 1000


def use(loader, before):
    """Take batches until both loader processes have prepared some; their ids."""

    def at_work():
        next(loader)
        started = children() - before
        return len(started) == 2 and all(map(has_prepared, started))

    def has_prepared(pid):
        process = Path(f"/proc/{pid}")
        command = (process / "cmdline").read_text()  # before exec, it and the maps are those of this process
        return "mvlm.data.loading.worker" in command and "mvlm-images" in (process / "maps").read_text()

    wait_until(at_work)
    return children() - before


def test_a_process_is_small_and_does_not_import_torch(dataset):
    before = children()
    with opened(dataset) as loader:
        for pid in use(loader, before):
            assert private_mb(pid) < 70
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert "libarrow" in maps and "torch" not in maps and "transformers" not in maps


def test_closing_a_loader_leaves_no_process_and_no_open_file(dataset):
    processes, files = children(), len(os.listdir("/proc/self/fd"))
    with opened(dataset) as loader:
        kept = next(loader)[0].image_BCHW
        value = kept.clone()
    assert children() == processes
    assert (kept == value).all()  # what was handed out outlives the loader
    del kept, loader
    assert len(os.listdir("/proc/self/fd")) == files


def use_and_die(folder):
    mixture = Mixture([write_shards(folder, make_rows(130))])
    dataset = PairDataset(mixture, train_tokenizer(["a b"], 300), Data(), Objectives(), 32, 0, (4, 4))
    before, loader = children(), opened(dataset)
    first, second = use(loader, before)
    os.kill(first, signal.SIGSTOP)
    print(first, second, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_die_with_their_parent_even_stopped_ones(tmp_path):
    parent = Copy(use_and_die, tmp_path / "shards")
    assert parent.wait(100) == -signal.SIGKILL, parent.stderr
    pids = parent.stdout.split()
    assert len(pids) == 2
    wait_until(lambda: all(map(is_gone, pids)))


def test_signals_for_the_job_do_not_end_its_loader_processes(dataset):
    before = children()
    with opened(dataset) as loader:
        for pid, number in itertools.product(use(loader, before), (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)):
            os.kill(pid, number)
        for _ in range(5):
            next(loader)


def test_a_killed_process_is_reported_and_does_not_hang_the_loader(dataset):
    before = children()
    with opened(dataset) as loader:
        for pid in use(loader, before):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(DataLost, match=r"loader process was killed by SIGKILL.*data\.workers") as lost:
            for _ in loader:
                pass
    assert lost.value.exit_code == 75
    assert children() == before


def test_a_users_error_in_a_process_is_raised_with_its_message(tmp_path, tokenizer, config):
    folder = write_shards(tmp_path / "s", make_rows(40), shard_rows=1)
    shard = folder / "000017.arrow"
    shard.write_bytes(bytes(shard.stat().st_size))
    dataset = PairDataset(Mixture([folder]), tokenizer, *pair_args(config), (4, 4))
    loader = opened(dataset, draws=MixtureSampler([40], [1.0], 0, 4, 4), global_batch=4, micro_batch=4)
    with pytest.raises(UserError, match=r"000017\.arrow cannot be read"), loader:
        for _ in loader:
            pass


def test_a_bug_in_a_process_is_raised_with_its_traceback(mixture, tokenizer, config):
    with (
        opened(Broken(mixture, tokenizer, *pair_args(config), (4, 4)), workers=1) as loader,
        pytest.raises(RuntimeError, match=r"(?s)loader process.*broken\.py.*KeyError: 'a bug'"),
    ):
        for _ in loader:
            pass


def test_the_first_batch_does_not_wait_for_a_process(dataset, monkeypatch, tmp_path):
    never_ready = tmp_path / "python"
    never_ready.write_text("#!/bin/sh\nexec sleep 60\n")
    never_ready.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(never_ready))
    with opened(dataset) as loader:
        first = next(loader)
    with Loader(dataset, DRAWS, global_batch=16, micro_batch=8, workers=0) as plain:
        for ours, expected in zip(first, next(plain), strict=True):
            assert (ours.image_BCHW == expected.image_BCHW).all() and (ours.text_BL == expected.text_BL).all()
