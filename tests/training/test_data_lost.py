"""A run whose data stops coming saves what it has done and asks to be started again."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from mvlm.checkpoint.layout import find_checkpoint
from mvlm.config.load import load_config
from mvlm.errors import UserError
from mvlm.runtime import dist, storage
from mvlm.training.fit.run import train
from tests.conftest import ROOT, TINY, mvlm_command, run_command
from tests.data.http_store import Store
from tests.data.made_shards import make_rows, write_shards
from tests.ranks import run_ranks
from tests.training.conftest import TOML, TrainHere, losses_by_step, read_metrics

STEPS = 20
JSON = str(ROOT / "ds_configs/cpu.json")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store of 400 rows in 40 shards that goes away after serving ten of them."""
    pytest.importorskip("aiohttp")
    store = Store(write_shards(tmp_path / "shards", make_rows(400), shard_rows=10))
    store.start(lasts=10)
    yield store
    store.stop()


def words(run: Path, train: str | Path, *overrides: str) -> list[str]:
    whole_shards = ["data.shuffle=blocks", "data.shuffle_shards=2", "data.epoch=images"]
    data = [f"data.train={train}", f"data.cache={run.parent / 'cache'}", *whole_shards]
    return [*TINY, *data, f"run.dir={run}", f"train.steps={STEPS}", *overrides]


def signal_when_gone(store: Store) -> None:
    while store.server:
        time.sleep(0.01)
    time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_whose_store_goes_away_resumes_exactly(
    train_here: TrainHere,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(storage, "PAUSES_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr(storage, "RETRY_S", 0.1)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train_here(whole, *words(whole, store.folder)) == 0
    given = words(run, store.url, "data.patience=0.03", f"data.tokenizer={whole}/tokenizer")
    assert train_here(run, *given) == 75
    step = read_metrics(run)[-1]["step"]
    assert 0 < step < STEPS and find_checkpoint(run).name == f"step_{step:08d}"
    said = capfd.readouterr().err
    assert f"Stopped for lack of data (rank 0: {store.url}/0000" in said and f"at step {step}, saved in" in said
    store.start(lasts=5)
    waits = Thread(target=signal_when_gone, args=(store,))
    waits.start()
    assert train_here(run, *given, "data.patience=60") == 75  # at once, though it might wait an hour
    waits.join()
    assert "Stopped by a signal at step" in capfd.readouterr().err
    store.start()
    assert train_here(run, *given) == 0
    assert losses_by_step(run) == losses_by_step(whole)
    assert [line["step"] for line in read_metrics(run)] == list(range(1, STEPS + 1))


def train_while_shards_are_replaced(folder: Path, run: Path, given: list[str]) -> int:
    """What each rank runs: the shards in `folder`, which is served, are spoiled at step 2."""

    def replace_shards(model: Any, _: Path, step: int, last: bool) -> tuple[dict[str, float], None]:
        for path in folder.glob("*.arrow") if step == 2 else ():
            path.write_bytes(bytes(path.stat().st_size))
        return {}, None

    storage.PAUSES_S = (0.01, 0.01, 0.01)
    dist.init()
    config = load_config(TOML, [*words(run, *given), "eval.every=2", "eval.share=1e9"])
    try:
        return train(config, (JSON, TOML), frozenset(), lambda _: replace_shards)
    except UserError as error:
        print(error)
        return int(error.exit_code)


def test_a_mistake_in_the_data_loses_no_steps(store: Store, tmp_path: Path) -> None:
    """The store's shards are spoiled on two ranks and restored before the run goes on."""
    store.stop()
    store.start()
    run, kept = tmp_path / "run", shutil.copytree(store.folder, tmp_path / "kept")
    a_quarter = "data.cache_gb=0.00035"  # full once the tokenizer has read all shards
    place = store.folder, run, [store.url, a_quarter]
    done = run_ranks(train_while_shards_are_replaced, *place, ranks=2)
    assert done.returncode == 1 and "its hash is not the manifest's" in done.stdout, done.stderr
    step = read_metrics(run)[-1]["step"]
    assert 0 < step < STEPS and find_checkpoint(run).name == f"step_{step:08d}"
    assert f"at step {step}, saved in" in done.stderr and "Stopped for lack of data (rank" in done.stderr
    shutil.copytree(kept, store.folder, dirs_exist_ok=True)
    assert run_ranks(train_while_shards_are_replaced, *place).returncode == 0
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == list(range(1, STEPS + 1))


def test_a_run_whose_loader_process_is_killed_is_saved(one_rank: None, scenes: Path, tmp_path: Path) -> None:
    run, before = tmp_path / "run", set(psutil.Process().children())

    def kill_loaders(model: Any, folder: Path, step: int, last: bool) -> tuple[dict[str, float], None]:
        while step == 3 and not set(psutil.Process().children()) - before:
            time.sleep(0.01)
        loaders = set(psutil.Process().children()) - before
        for loader in loaders:
            loader.kill()
        return {}, None

    loading = ("data.worker_mode=processes", "data.workers=1", "eval.every=3", "eval.share=1e9")
    config = load_config(TOML, words(run, scenes / "train", "data.shuffle_shards=0", *loading))
    assert train(config, (JSON, TOML), frozenset(), lambda _: kill_loaders) == 75
    assert read_metrics(run)[-1]["step"] >= 3
    assert find_checkpoint(run).name == f"step_{read_metrics(run)[-1]['step']:08d}"


def test_a_run_whose_data_are_late_heeds_a_signal(one_rank: None, scenes: Path, tmp_path: Path) -> None:
    """A loader process that stands still is late like one whose file server does not answer."""
    run, before = tmp_path / "run", set(psutil.Process().children())
    saved: list[str] = []

    def signal_and_resume(loaders: set[psutil.Process]) -> None:
        while losses_by_step(run).keys() <= {1, 2, 3}:
            time.sleep(0.01)
        time.sleep(0.5)  # until the batches made before are used up
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 20
        while find_checkpoint(run).name == "step_00000000" and time.monotonic() < deadline:
            time.sleep(0.01)
        saved.append(find_checkpoint(run).name)
        for loader in loaders:
            loader.resume()

    def suspend_loaders(model: Any, folder: Path, step: int, last: bool) -> tuple[dict[str, float], None]:
        while step == 3 and not set(psutil.Process().children()) - before:
            time.sleep(0.01)
        if step == 3:
            loaders = set(psutil.Process().children()) - before
            for loader in loaders:
                loader.suspend()
            Thread(target=signal_and_resume, args=(loaders,)).start()
        return {}, None

    loading = ("data.worker_mode=processes", "data.workers=1", "eval.every=3", "eval.share=1e9")
    config = load_config(TOML, words(run, scenes / "train", "data.shuffle_shards=0", "train.steps=10000", *loading))
    assert train(config, (JSON, TOML), frozenset(), lambda _: suspend_loaders) == 75
    assert saved == [f"step_{max(losses_by_step(run)):08d}"]


@pytest.mark.campaign
def test_two_ranks_wait_for_a_store_together(store: Store, trained: Path, tmp_path: Path) -> None:
    """For longer than the watchdog allows a rank to make no progress."""
    run = tmp_path / "run"
    tokenizer = f"data.tokenizer={trained}/tokenizer"
    given = words(run, store.url, "data.patience=0.8", "train.hang_minutes=0.4", tokenizer)
    command = mvlm_command("train", TOML, "--deepspeed_config", JSON, *given, ranks=2)
    done = run_command(command)
    assert done.returncode == 75, done.stdout + done.stderr
    step = read_metrics(run)[-1]["step"]
    assert f"at step {step}, saved in" in done.stderr and "Stopped for lack of data (rank" in done.stderr
    assert not (run / "hangs.jsonl").exists() and find_checkpoint(run).name == f"step_{step:08d}"
    store.start()
    assert run_command(command).returncode == 0
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == list(range(1, STEPS + 1))
