"""Durable writes, and the client of all stores: what is retried, what is not, and the errors."""

from __future__ import annotations

import errno
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mvlm.errors import UserError
from mvlm.runtime import storage
from mvlm.runtime.storage import Attempts, Outages, Storage, write_durably


class Flaky(MemoryFileSystem):
    """Fails as often as `failures` says, by name of the method."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failures: ClassVar[Counter[str]] = Counter()
    calls: ClassVar[Counter[str]] = Counter()
    error: ClassVar[Exception] = ConnectionError("reset")

    def _met(self, name: str) -> None:
        self.calls[name] += 1
        if self.failures[name] > 0:
            self.failures[name] -= 1
            raise self.error

    def pipe_file(self, *words: Any, **options: Any) -> None:
        self._met("pipe_file")
        super().pipe_file(*words, **options)

    def cat_file(self, *words: Any, **options: Any) -> bytes:
        self._met("cat_file")
        return bytes(super().cat_file(*words, **options))


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Storage]]:
    monkeypatch.setattr(storage, "PAUSES_S", (0.01, 0.01))
    fsspec.register_implementation("flaky", Flaky, clobber=True)

    def opened(error: Exception | None = None, **failures: int) -> Storage:
        Flaky.failures, Flaky.calls, Flaky.error = Counter(failures), Counter(), error or ConnectionError("reset")
        return Storage("flaky://bucket", "see to it")

    yield opened
    Flaky.store.clear()


def test_a_file_is_renamed_into_place_only_after_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(file: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{file}')).name}")
        fsync(file)

    def seen_replace(source: Path, target: Path) -> None:
        done.append(f"replace {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    (tmp_path / "a.json").write_text("before")
    write_durably(tmp_path / "a.json", "after")
    write_durably(tmp_path / "new/b", b"bytes")
    assert done == [
        *("sync a.json.partial", "replace a.json", f"sync {tmp_path.name}"),
        *("sync b.partial", "replace b", "sync new"),
    ]
    assert (tmp_path / "a.json").read_text() == "after" and (tmp_path / "new/b").read_bytes() == b"bytes"


def test_several_threads_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    """As the nodes of a run do, each of which uploads the settings with a checkpoint."""
    (tmp_path / "here").write_bytes(bytes(100_000))
    store = Storage(f"file://{tmp_path}/mirror", "see to it")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: store.upload(tmp_path / "here", "step/config.toml"), range(200)))
    assert store.sizes() == {"step/config.toml": 100_000}


@pytest.mark.parametrize("named", [str, Path.as_uri], ids=["path", "quoted URL"])
def test_a_folder_of_any_name_is_found(tmp_path: Path, named: Callable[[Path], str]) -> None:
    folder = tmp_path / "a corpus::é #1 %20"
    Storage(named(folder), "see to it").write("one", b"1")
    assert (folder / "one").read_bytes() == b"1"


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_written_files_can_be_listed_read_and_deleted(tmp_path: Path, protocol: str) -> None:
    store = Storage(
        {"file": f"file://{tmp_path}/in", "memory": f"memory://{tmp_path.name}"}[protocol] + "/", "see to it"
    )
    (tmp_path / "here").write_bytes(b"abc")
    store.write("a/one", b"1")
    store.upload(tmp_path / "here", "a/b/two")
    assert store.sizes() == {"a/one": 1, "a/b/two": 3} and store.sizes("a/b") == {"a/b/two": 3}
    assert store.sizes("none") == {} and store.read("none") is None and store.size("none") is None
    assert store.read("a/b/two") == b"abc" and store.size("a/one") == 1
    again = pickle.loads(pickle.dumps(store))
    again.download("a/one", tmp_path / "one")
    again.download("none", tmp_path / "none")
    assert (tmp_path / "one").read_bytes() == b"1" and not (tmp_path / "none").exists()
    store.delete("a/one")
    store.delete("a/one")
    assert store.sizes() == {"a/b/two": 3}
    store.delete("a")
    assert store.sizes() == {}


def test_transient_errors_are_retried(flaky: Callable[..., Storage]) -> None:
    store = flaky(pipe_file=2, cat_file=2)
    store.write("a", b"1")
    assert store.read("a") == b"1" and Flaky.calls == {"pipe_file": 3, "cat_file": 3}
    with pytest.raises(UserError, match=r"^flaky://bucket/a cannot be read \(ConnectionError: reset\): see to it\.$"):
        flaky(cat_file=3).read("a")
    assert Flaky.calls["cat_file"] == 3


@pytest.mark.parametrize("error", [PermissionError("403"), OSError(errno.ENOSPC, "full"), ValueError("no such host")])
def test_permanent_errors_are_reported_at_once(flaky: Callable[..., Storage], error: Exception) -> None:
    with pytest.raises(UserError, match=r"flaky://bucket/a cannot be written"):
        flaky(error, pipe_file=1).write("a", b"1")
    assert Flaky.calls["pipe_file"] == 1


def test_a_full_disk_here_is_not_blamed_on_the_store(tmp_path: Path, mount_disk: Callable[[str], Path]) -> None:
    (tmp_path / "big").write_bytes(bytes(200_000))
    here = mount_disk("100k")
    with pytest.raises(
        UserError, match=rf"/big cannot be fetched into {here} .*No space left.*\): free some room there\.$"
    ):
        Storage(f"local://{tmp_path}", "check the URL").download("big", here / "big")


def test_pauses_are_never_shortened_and_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the ranks of a run do not all return to a store at the same moment."""
    waited: list[float] = []
    monkeypatch.setattr(Attempts, "_wait", lambda self, seconds: waited.append(seconds))
    monkeypatch.setattr(storage, "PAUSES_S", (1.0,) * 50)
    with Attempts("it", Outages()) as attempts:
        assert all(attempts.again(ConnectionError()) for _ in range(50))
        assert not attempts.again(ConnectionError())
    assert min(waited) >= 1.0 and max(waited) - min(waited) > 0.1
