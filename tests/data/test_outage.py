"""A real HTTP server of shards that goes away: readers wait, give up in time, and notice if only a shard is missing."""

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from http_store import Store
from made_shards import make_rows, write_shards

from mvlm.data.shards.cache import Cache
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import DataLost, UserError
from mvlm.runtime import storage
from mvlm.runtime.storage import is_transient

pytest.importorskip("aiohttp")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr(storage, "RETRY_S", 0.05)
    write_shards(tmp_path / "shards", make_rows(40), shard_rows=10)
    store = Store(tmp_path / "shards")
    store.start()
    yield store
    store.stop()


def test_readers_wait_for_a_store_that_comes_back(store, tmp_path, capfd):
    remote = Mixture([store.url], cache=Cache(str(tmp_path / "c"), patience=5.0))
    outages = remote.cache.outages
    assert remote.row(5).key == "k00005" and not outages.reasons
    store.stop()
    with ThreadPoolExecutor(1) as thread:
        row = thread.submit(remote.row, 15)
        while not outages.reasons:
            assert not row.done()
            time.sleep(0.01)
        assert list(outages.reasons) == [f"{store.url}/000001.arrow"]
        store.start()
        assert row.result(60).key == "k00015" and not outages.reasons
    warning = capfd.readouterr().err
    assert f"mvlm: {store.url}/000001.arrow is out of reach for now (" in warning
    assert "up to 5 minutes, data.patience" in warning


def test_readers_give_up_a_store_that_stays_away(store, tmp_path):
    remote = Mixture([store.url], cache=Cache(str(tmp_path / "c"), patience=0.005))
    store.stop()
    with pytest.raises(
        DataLost, match=r"000000\.arrow cannot be read, after \d+ attempts .* in 0\.005 minutes"
    ) as lost:
        remote.row(5)
    assert lost.value.exit_code == 75 and not remote.cache.outages.reasons
    with pytest.raises(DataLost, match=r"manifest\.json cannot be read, .* in 0\.005 minutes"):
        Mixture([store.url], cache=Cache(str(tmp_path / "d"), patience=0.005))
    with pytest.raises(DataLost, match=r"manifest\.json cannot be read .*: give "):  # without patience
        Mixture([store.url], cache=Cache(str(tmp_path / "d")))


def test_readers_stop_waiting_once_they_are_given_up(store, tmp_path):
    remote = Mixture([store.url], cache=Cache(str(tmp_path / "c"), patience=60.0))
    store.stop()
    with ThreadPoolExecutor(1) as thread:
        row = thread.submit(remote.row, 5)
        while not remote.cache.outages.reasons:
            time.sleep(0.01)
        remote.cache.outages.given_up = True
        with pytest.raises(DataLost):
            row.result(60)


def test_readers_do_not_wait_for_a_shard_that_the_store_lacks(store, tmp_path):
    remote = Mixture([store.url], cache=Cache(str(tmp_path / "c"), patience=60.0))
    (store.folder / "000000.arrow").unlink()
    with pytest.raises(UserError, match=r"000000\.arrow cannot be read, after 4 attempts \(FileNotFound") as mistake:
        remote.row(5)
    assert mistake.value.exit_code == 1


class Answer(Exception):
    def __init__(self, status):
        self.status = status


class NoCredentialsError(Exception):
    pass


@pytest.mark.parametrize(
    "error", [ConnectionError(), TimeoutError(), OSError(5, "input/output"), Answer(503), Answer(429)], ids=repr
)
def test_transient_errors(error):
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(),
        PermissionError(),
        OSError(28, "no space"),
        Answer(403),
        NoCredentialsError(),
        ImportError("s3fs"),
        UserError("another hash"),
    ],
    ids=repr,
)
def test_final_errors(error):
    assert not is_transient(error)


def test_an_unreachable_disk_is_not_reported_as_a_damaged_shard(tmp_path):
    """A stale NFS handle, for example: another node may reach it. Here sockets fail to open in the same way."""
    shards = write_shards(tmp_path / "s", make_rows(20), shard_rows=10)
    mixture = Mixture([shards])
    for name in ("000001.arrow", "takedown.json", "manifest.json"):
        (shards / name).unlink(missing_ok=True)
        os.mknod(shards / name, stat.S_IFSOCK | 0o600)
        with pytest.raises(DataLost, match=rf"^{shards / name} cannot be reached from .*: start the same") as lost:
            mixture.row(15) if name.endswith("arrow") else Mixture([shards])
        assert lost.value.exit_code == 75
