"""Writing to where other machines read: an S3 server of the test's own, and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from made import run, tree, write_folder

from mvlm.runtime import storage

ROOT = Path(__file__).parents[2]
SHARDING = ("--workers", 1, "--shard-mb", 0.02, "--split", "train=0.7,eval=0.3")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage") / "in"
    write_folder(folder, 60)
    (folder / "images/7.jpg").write_bytes(b"<html>404</html>")
    return folder


@pytest.fixture(scope="module")
def local(source: Path) -> dict[str, bytes]:
    out = source.with_name("local")
    run("shard", "folder", source, "--out", out, *SHARDING)
    return tree(out)


def remote_tree(files: fsspec.AbstractFileSystem, root: str) -> dict[str, bytes]:
    files.invalidate_cache()
    return {path[len(root) + 1 :]: files.cat_file(path) for path in files.find(root)}


def test_s3_gets_the_bytes_a_folder_gets(
    s3: fsspec.AbstractFileSystem, source: Path, local: dict[str, bytes], fails: Callable[..., str]
) -> None:
    run("shard", "folder", source, "--out", "s3://bucket/deep/corpus", *SHARDING)
    assert remote_tree(s3, "bucket/deep/corpus") == local
    assert "already holds shards" in fails("shard", "folder", source, "--out", "s3://bucket/deep/corpus", *SHARDING)
    assert remote_tree(s3, "bucket/deep/corpus") == local


def test_a_killed_upload_goes_on(
    s3: fsspec.AbstractFileSystem, source: Path, local: dict[str, bytes], fails: Callable[..., str]
) -> None:
    """Killed by itself when the third part is finished, from another process."""
    code = (
        "import os, sys\n"
        "from data_tools.store.remote import RemoteStore\n"
        "from data_tools.__main__ import main\n"
        "finish = RemoteStore.finish_part\n"
        "def dying(self, made):\n"
        "    finish(self, made)\n"
        "    if made.number == 2: os.kill(os.getpid(), 9)\n"
        "RemoteStore.finish_part = dying\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    argv = ["shard", "folder", str(source), "--out", "s3://bucket/killed", *map(str, SHARDING)]
    ended = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, env=os.environ, capture_output=True)
    assert ended.returncode == -9
    left = remote_tree(s3, "bucket/killed")
    assert sum(name.endswith(".part") for name in left) == 3
    assert not any(name.endswith("manifest.json") for name in left)
    written = {path: s3.info(path)["LastModified"] for path in s3.find("bucket/killed") if path.endswith(".arrow")}
    run(*argv)
    assert remote_tree(s3, "bucket/killed") == local
    kept = [path for path, when in written.items() if s3.info(path)["LastModified"] == when]
    assert len(kept) >= 3


def test_what_others_put_there_is_left_alone(
    s3: fsspec.AbstractFileSystem, source: Path, fails: Callable[..., str]
) -> None:
    s3.pipe_file("bucket/mine/notes.txt", b"keep")
    assert "other files" in fails("shard", "folder", source, "--out", "s3://bucket/mine", *SHARDING)
    assert remote_tree(s3, "bucket/mine") == {"notes.txt": b"keep"}


def test_too_many_dropped_leaves_the_list_alone(
    s3: fsspec.AbstractFileSystem, source: Path, fails: Callable[..., str]
) -> None:
    out = ("--out", "s3://bucket/refused", *SHARDING)
    assert "1 of 60" in fails("shard", "folder", source, *out, "--tolerate", 0.001)
    assert remote_tree(s3, "bucket/refused") == {}
    assert b"not an image" in s3.cat_file("bucket/refused.quarantine.jsonl")
    run("shard", "folder", source, *out)


def test_memory_and_an_unknown_protocol(source: Path, local: dict[str, bytes], fails: Callable[..., str]) -> None:
    run("shard", "folder", source, "--out", "memory://corpus", *SHARDING)
    assert remote_tree(fsspec.filesystem("memory"), "/corpus") == local
    assert "nonesuch://corpus cannot be used" in fails("shard", "folder", source, "--out", "nonesuch://corpus")


class Unreliable(MemoryFileSystem):
    """Every other request fails."""

    protocol = "unreliable"
    requests = 0

    def pipe_file(self, *words: Any, **options: Any) -> None:
        self._met()
        super().pipe_file(*words, **options)

    def put_file(self, *words: Any, **options: Any) -> None:
        self._met()
        super().put_file(*words, **options)

    def _met(self) -> None:
        type(self).requests += 1
        if self.requests % 2:
            raise ConnectionError("reset")


def test_a_store_that_fails_at_times_gets_all_the_same(
    source: Path, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAUSES_S", (0.0, 0.0, 0.0))
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    run("shard", "folder", source, "--out", "unreliable://once/corpus", *SHARDING)
    assert remote_tree(fsspec.filesystem("unreliable"), "unreliable://once/corpus") == local
    assert Unreliable.requests > 2 * len(local)
