"""Shards at URLs: the same rows through a bounded cache; they are fetched once, checked, retried, and named if lost."""

import itertools
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
from made_shards import encoded, make_rows, write_shards
from slow_store import SlowStore

from data_tools.row_index import add_indexes
from mvlm.config.schema import Data
from mvlm.data.loading import prefetch
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.order import MixtureSampler
from mvlm.data.loading.prefetch import start_prefetcher
from mvlm.data.loading.sampler import make_sampler, order_of
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.corpus import UnreadableRow
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import DataLost, UserError
from mvlm.runtime import storage
from tests.conftest import pair_args

ROWS = 130
SHARD_ROWS = 10


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of nearly the same length."""
    rng = np.random.default_rng(0)
    rows = [row | {"image": encoded(rng)} for row in make_rows(ROWS)]
    rows = [row | {"crc32": zlib.crc32(row["image"])} for row in rows]
    return write_shards(tmp_path_factory.mktemp("store") / "shards", rows, shard_rows=SHARD_ROWS)


@pytest.fixture(autouse=True)
def store(monkeypatch):
    fsspec.register_implementation("slow", SlowStore, clobber=True)
    SlowStore.reset()
    SlowStore.clear_instance_cache()
    monkeypatch.setattr(storage, "PAUSES_S", (0.0, 0.01, 0.01))
    return SlowStore


@pytest.fixture
def largest(shards):
    return max(path.stat().st_size for path in shards.glob("*.arrow"))


def cached(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.suffix in (".arrow", ".part"))


def size_of(folder):
    total = 0
    for path in Path(folder).glob("*.arrow"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def test_rows_are_the_same_as_from_the_folder(shards, tmp_path, store):
    local, remote = Mixture([shards]), Mixture([f"slow://{shards}"], cache=Cache(str(tmp_path / "c")))
    assert remote.fingerprint == local.fingerprint and store.fetched == []
    for row in range(ROWS):
        assert bytes(remote.row(row).image) == bytes(local.row(row).image)
        assert remote.row(row).captions == local.row(row).captions
    assert sorted(store.fetched) == sorted(path.name for path in shards.glob("*.arrow"))
    assert remote.where(11) == f"slow://{shards}/000001.arrow row 1"
    again = pickle.loads(pickle.dumps(remote))
    assert again.row(5).key == "k00005" and len(store.fetched) == 13
    assert Mixture([f"slow://{shards}"], cache=Cache(str(tmp_path / "c"))).row(99).key == "k00099"
    assert len(store.fetched) == 13  # what an earlier run fetched is still good


def test_shards_in_an_s3_bucket(s3, shards, tmp_path):
    s3.put(str(shards), "bucket/corpus", recursive=True)
    remote = Mixture(["s3://bucket/corpus"], cache=Cache(str(tmp_path / "c")))
    assert [remote.row(row).key for row in range(ROWS)] == [f"k{row:05d}" for row in range(ROWS)]
    s3.rm("bucket/corpus/000003.arrow")
    lost = Mixture(["s3://bucket/corpus"], cache=Cache(str(tmp_path / "d")))
    with pytest.raises(UserError, match=r"s3://bucket/corpus/000003\.arrow cannot be read, after 4 attempts"):
        lost.row(35)
    with pytest.raises(UserError, match=r"s3://bucket/nothing/manifest\.json cannot be read"):
        Mixture(["s3://bucket/nothing"])


def test_shards_that_fail_or_arrive_damaged_are_fetched_again(shards, tmp_path, store):
    remote = Mixture([f"slow://{shards}"], cache=Cache(str(tmp_path / "c")))
    store.failures["000000.arrow"], store.spoilt["000001.arrow"] = 3, 2
    assert remote.row(5).key == "k00005" and remote.row(15).key == "k00015"
    assert store.fetched.count("000001.arrow") == 3
    store.failures["000002.arrow"], store.spoilt["000003.arrow"] = 4, 4
    for row, reason in ((25, "does not answer"), (35, "its hash is not the manifest's.*as it was uploaded")):
        with pytest.raises(UserError, match=rf"00000{row // 10}\.arrow cannot be read, after 4 attempts \(.*{reason}"):
            remote.row(row)
    assert len(cached(tmp_path / "c")) == 2  # nothing partial or damaged is left
    assert remote.row(25).key == "k00025"


def test_the_cache_stays_within_its_bound(shards, tmp_path, largest):
    bound = Cache(str(tmp_path / "c"), 3.2 * largest / 1e9)
    remote = Mixture([f"slow://{shards}"], cache=bound)
    views = []
    for row in np.random.default_rng(0).integers(0, ROWS, 200).tolist():
        content = remote.row(row)
        assert content.key == f"k{row:05d}" and size_of(bound.folder) <= bound.capacity
        views.append((row, content.image))
    local = Mixture([shards])
    for row, image in views:  # files are dropped, but views of them stay valid
        assert bytes(image) == bytes(local.row(row).image)
    del views, content
    remote.row(0), remote.row(129)
    deleted = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if "(deleted)" in line and "/c/" in line
    ]
    assert len(deleted) <= 1  # dropped files are closed, which frees their space
    tiny = Cache(str(tmp_path / "tiny"), 1e-9)
    assert Mixture([f"slow://{shards}"], cache=tiny).row(50).key == "k00050"
    assert len(cached(tiny.folder)) == 1


def test_the_least_recently_used_shard_is_dropped_first(shards, tmp_path, largest):
    bound = Cache(str(tmp_path / "c"), 3.2 * largest / 1e9)
    remote = Mixture([f"slow://{shards}"], cache=bound)
    shard = remote.corpora[0].manifest.shards
    for number in (0, 1, 2):
        remote.numbers.fetch(number * SHARD_ROWS)
        time.sleep(0.01)
    bound.touch([shard[1], shard[0]])
    time.sleep(0.01)
    remote.numbers.fetch(3 * SHARD_ROWS)
    assert [number for number in range(13) if bound.holds(shard[number])] == [0, 1, 3]
    place = remote.corpora[0].location
    place.prefetch(4, [shard[0], shard[3]])
    assert [number for number in range(13) if bound.holds(shard[number])] == [0, 3, 4]
    place.prefetch(5, [shard[0], shard[3], shard[4]])
    assert not bound.holds(shard[5])  # not at the cost of shards that are needed sooner


def test_other_files_in_the_folder_of_the_cache_are_left_alone(shards, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(shards, folder)
    (folder / "download.part").write_bytes(b"half")
    before = set(os.listdir(folder))
    remote = Mixture([f"slow://{shards}"], cache=Cache(str(folder), 1e-9))
    assert [remote.row(row).key for row in (5, 50)] == ["k00005", "k00050"]
    assert before < set(os.listdir(folder)) and len(list(folder.glob(f"{'?' * 64}.arrow"))) == 1


def test_a_cache_that_others_may_write_is_refused(shards, tmp_path, store):
    """A file in it of the right name and length may have any content."""
    folder = tmp_path / "c"
    assert Mixture([f"slow://{shards}"], cache=Cache(str(folder))).row(5).key == "k00005"
    assert folder.stat().st_mode & 0o777 == 0o700
    for mode in (0o770, 0o777, 0o1777):
        folder.chmod(mode)
        with pytest.raises(UserError, match=rf"can be written by others \(mode {mode:04o}\).* chmod it to 700"):
            Mixture([f"slow://{shards}"], cache=Cache(str(folder)))
    folder.chmod(0o755)
    assert Mixture([f"slow://{shards}"], cache=Cache(str(folder))).row(5).key == "k00005"


def test_a_deleted_cache_is_created_again(shards, tmp_path, capfd):
    remote = Mixture([f"slow://{shards}"], cache=Cache(str(tmp_path / "c")))
    assert remote.row(5).key == "k00005"
    shutil.rmtree(tmp_path / "c")
    prefetcher = start_prefetcher(remote, make_sampler(remote, 0, [order_of(Data())]), 0)
    assert [remote.row(row).key for row in (5, 99)] == ["k00005", "k00099"]
    prefetcher.close()
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700 and "Traceback" not in capfd.readouterr().err


def test_a_full_disk_under_the_cache_is_not_reported_as_a_lost_shard(shards, mount_disk, largest):
    remote = Mixture([f"slow://{shards}"], cache=Cache(f"{mount_disk(str(largest))}/c"))
    with pytest.raises(UserError, match=r"The cache \S+/c cannot be written .*No space left.* lower data\.cache_gb"):
        for row in range(ROWS):
            remote.row(row)


def test_a_read_only_cache_serves_the_shards_it_has(shards, mount_disk, capfd):
    disk = mount_disk("3m")
    remote = Mixture([f"slow://{shards}"], cache=Cache(f"{disk}/c"))
    assert remote.row(5).key == "k00005"
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    prefetcher = start_prefetcher(remote, make_sampler(remote, 0, [order_of(Data())]), 0)
    assert remote.row(6).key == "k00006"
    with pytest.raises(UserError, match=r"The cache \S+ cannot be written .*Read-only file system.* another folder"):
        remote.row(99)
    prefetcher.close()
    assert "Traceback" not in capfd.readouterr().err


def test_a_lost_disk_under_the_cache_is_not_the_users_mistake(shards, tmp_path):
    """A socket that is opened as a file gives the error of a device that has gone."""
    remote = Mixture([f"slow://{shards}"], cache=Cache(str(tmp_path / "c")))
    assert remote.row(5).key == "k00005"
    os.mknod(tmp_path / f"c/{remote.corpora[0].manifest.shards[9].hash}.lock", stat.S_IFSOCK | 0o600)
    with pytest.raises(DataLost, match=r"The cache \S+/c cannot be reached .*No such device.* same command again"):
        remote.row(99)


def test_a_file_in_place_of_the_cache_is_named(shards, tmp_path, capfd):
    remote = Mixture([f"slow://{shards}"], cache=Cache(str(tmp_path / "c")))
    (tmp_path / "c").rename(tmp_path / "moved")
    (tmp_path / "c").touch()
    prefetcher = start_prefetcher(remote, make_sampler(remote, 0, [order_of(Data())]), 0)
    with pytest.raises(UserError, match=r"The cache \S+/c cannot be made .*File exists.* folder you can write to"):
        remote.row(99)
    prefetcher.close()
    assert "Traceback" not in capfd.readouterr().err


def test_each_user_of_a_node_has_a_separate_cache_and_trusts_no_other(shards, monkeypatch):
    if os.getuid() != 0:
        pytest.skip("becoming another user needs root")
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own is closed to other users
        os.chmod(scratch, 0o1777)
        monkeypatch.setattr(tempfile, "tempdir", scratch)
        Mixture([f"slow://{shards}"], cache=Cache())
        other = os.fork()
        if not other:
            try:
                os.setuid(12345)
                Cache().make()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(other, 0)[1] == 0
        assert sorted(os.listdir(scratch)) == ["mvlm-shards-0", "mvlm-shards-12345"]
        with pytest.raises(UserError, match=r"mvlm-shards-12345 belongs to user 12345 and not to you"):
            Cache(f"{scratch}/mvlm-shards-12345").make()


SCRIPT = """
import sys; sys.path.insert(0, "tests/data")
import fsspec
from slow_store import SlowStore
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.mixture import Mixture
fsspec.register_implementation("slow", SlowStore)
SlowStore.latency = 0.02
remote = Mixture([sys.argv[1]], cache=Cache(sys.argv[2], float(sys.argv[3])))
assert all(remote.row(row).key == f"k{row:05d}" for row in range(130))
print(len(SlowStore.fetched))
"""


@pytest.mark.parametrize("room", [100, 2.2])
def test_the_ranks_of_a_node_share_the_cache(shards, tmp_path, largest, room):
    words = [sys.executable, "-c", SCRIPT, f"slow://{shards}", str(tmp_path / "c"), str(room * largest / 1e9)]
    ranks = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sizes = []
    while any(rank.poll() is None for rank in ranks):
        sizes.append(size_of(tmp_path / "c") if (tmp_path / "c").exists() else 0)
        time.sleep(0.005)
    fetched = [int(rank.communicate()[0]) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks)
    if room == 100:
        assert sum(fetched) == 13
    else:
        assert max(sizes) <= room * largest
    assert not list((tmp_path / "c").glob("*.part")) and not list((tmp_path / "c").glob("*.lock"))


def test_leftovers_of_a_killed_process_are_removed(shards, tmp_path, largest):
    bound = Cache(str(tmp_path / "c"), 1.2 * largest / 1e9)
    remote = Mixture([f"slow://{shards}"], cache=bound)
    shard = remote.corpora[0].manifest.shards[0]
    for name in (f"{shard.hash}.{shard.bytes}.part", f"{'0' * 64}.123456789.part"):
        (bound.folder / name).write_bytes(b"half")
    (bound.folder / f"{shard.hash}.lock").touch()
    assert remote.row(0).key == "k00000"
    assert cached(bound.folder) == [f"{shard.hash}.arrow"]


def test_a_cache_too_small_for_the_shuffle_is_refused(shards, tmp_path, largest):
    remote = Mixture([f"slow://{shards}"], cache=Cache(str(tmp_path / "c"), 5 * largest / 1e9))
    with pytest.raises(UserError, match=r"All shards at URLs have .*data\.cache_gb.*data\.shuffle_shards"):
        make_sampler(remote, 0, [order_of(Data())])
    with pytest.raises(UserError, match=r"The 3 shards shuffled together and those after them .*data\.cache_gb"):
        make_sampler(remote, 0, [order_of(Data(shuffle_shards=3))])
    assert make_sampler(remote, 0, [order_of(Data(shuffle_shards=2))]).per_epoch == ROWS
    assert make_sampler(Mixture([shards], cache=Cache("", 0.0)), 0, [order_of(Data())]).per_epoch == ROWS


def images(loader, steps):
    return (batch.image_BCHW.clone() for (batch,) in itertools.islice(loader, steps))


@pytest.mark.parametrize("mode", ["threads", "processes"])
def test_shards_are_prefetched_within_the_bound(shards, tmp_path, tokenizer, config, store, largest, mode, monkeypatch):
    monkeypatch.setattr(prefetch, "LOOK_AGAIN_S", 0.01)  # as often as a long run does
    bound = Cache(str(tmp_path / "c"), 5 * largest / 1e9)
    local, remote = Mixture([shards]), Mixture([f"slow://{shards}"], cache=bound)
    draws = make_sampler(remote, 7, [order_of(Data(shuffle_shards=2))])
    store.reset(latency=0.05)
    options = {"global_batch": 10, "micro_batch": 10, "worker_mode": mode}
    with Loader(PairDataset(local, tokenizer, *pair_args(config), (4, 4)), draws, **options) as loader:
        expected = list(images(loader, 20))
    seen = []
    with Loader(
        PairDataset(remote, tokenizer, *pair_args(config), (4, 4)),
        draws,
        prefetcher=start_prefetcher(remote, draws, 0),
        **options,
    ) as loader:
        for step in images(loader, 20):
            seen.append(step)
            assert size_of(bound.folder) <= bound.capacity
    assert all(
        (a == b).all() for one, other in zip(seen, expected, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert store.most_at_once > 1  # several shards at a time
    # For two epochs; a few shards may be dropped and fetched again if threads get no core in time.
    assert len(store.fetched) < 3 * 13
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mvlm-data")]


def test_the_shards_needed_next_are_prefetched_first(shards, tmp_path, largest):
    """Compared with the list of all draws, from the stride, half a shard, in which the position is."""
    bound = Cache(str(tmp_path / "c"), 6.5 * largest / 1e9)
    remote = Mixture([f"slow://{shards}"], cache=bound)
    sizes = np.array([shard.bytes for shard in remote.corpora[0].manifest.shards])
    draws = MixtureSampler([ROWS], [1.0], 3, SHARD_ROWS, 2, [[SHARD_ROWS] * 13])
    rows = draws(np.arange(2 * ROWS))[0]
    prefetcher = start_prefetcher(remote, draws, 0)
    try:
        for position in range(0, ROWS, 12):
            prefetcher.at(position)
            draws_ahead = rows[position - position % (SHARD_ROWS // 2) :]
            needed = list(dict.fromkeys((draws_ahead // SHARD_ROWS).tolist()))
            that_fit = int((sizes[needed].cumsum() <= bound.capacity).sum())
            assert that_fit >= 6 and prefetcher.upcoming() == needed[:that_fit]
    finally:
        prefetcher.close()
    assert os.listdir(bound.folder)


def test_row_indexes_are_fetched_with_their_shards_and_checked(shards, tmp_path, store):
    place = shutil.copytree(shards, tmp_path / "indexed")
    add_indexes(place)
    remote = Mixture([f"slow://{place}"], cache=Cache(str(tmp_path / "c")))
    store.spoilt["000001.index"] = 2
    assert remote.row(15).key == "k00015" and sorted(set(store.fetched)) == ["000001.arrow", "000001.index"]
    assert store.fetched.count("000001.index") == 3
    remote.numbers.fetch(25)
    assert sorted(set(store.fetched))[2:] == ["000002.arrow", "000002.index"]
    with open(remote.cache.path(remote.corpora[0].manifest.shards[2]), "r+b") as file:
        content = file.read()
        file.seek(content.index("".join(Mixture([place]).row(25).captions).encode()))
        file.write(b"\0")
    with pytest.raises(UnreadableRow, match=r"000002\.arrow row 5 .*texts are not those"):
        remote.row(25)
