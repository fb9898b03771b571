"""Shards are written to object stores: to an S3 server that the tests start, and to memory."""

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

from data_tools import task
from data_tools.part import PartManifest
from data_tools.task import PartJob, make_part
from mvlm.runtime import storage

ROOT = Path(__file__).parents[2]
SHARDING = ("--workers", 1, "--shard-mb", 0.02, "--split", "train=0.7,eval=0.3")
KILLED_AFTER_THREE_PARTS = """
import os, sys
from data_tools.store.remote import RemoteStore
from data_tools.__main__ import main

finish = RemoteStore.finish_part

def finish_and_die(self, made):
    finish(self, made)
    if made.number == 2:
        os.kill(os.getpid(), 9)

RemoteStore.finish_part = finish_and_die
sys.exit(main(sys.argv[1:]))
"""


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


def test_s3_gets_the_same_bytes_as_a_folder(
    s3: fsspec.AbstractFileSystem, source: Path, local: dict[str, bytes], fails: Callable[..., str]
) -> None:
    run("shard", "folder", source, "--out", "s3://bucket/deep/corpus", *SHARDING)
    assert remote_tree(s3, "bucket/deep/corpus") == local
    assert "already holds shards" in fails("shard", "folder", source, "--out", "s3://bucket/deep/corpus", *SHARDING)
    assert remote_tree(s3, "bucket/deep/corpus") == local


def test_a_killed_upload_is_resumed_after_its_finished_parts(
    s3: fsspec.AbstractFileSystem, source: Path, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["shard", "folder", str(source), "--out", "s3://bucket/killed", *map(str, SHARDING)]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_THREE_PARTS, *argv], cwd=ROOT, env=os.environ, capture_output=True
    )
    assert ended.returncode == -9
    left = remote_tree(s3, "bucket/killed")
    assert sum(name.endswith(".part") for name in left) == 3
    assert not any(name.endswith("manifest.json") for name in left)
    made = []

    def recording(job: PartJob, number: int, *more: Any) -> PartManifest:
        made.append(number)
        return make_part(job, number, *more)

    monkeypatch.setattr(task, "make_part", recording)
    run(*argv)
    assert remote_tree(s3, "bucket/killed") == local
    assert made and made == list(range(3, 3 + len(made)))


def test_a_place_with_other_files_is_refused_and_left_alone(
    s3: fsspec.AbstractFileSystem, source: Path, fails: Callable[..., str]
) -> None:
    s3.pipe_file("bucket/mine/notes.txt", b"keep")
    assert "other files" in fails("shard", "folder", source, "--out", "s3://bucket/mine", *SHARDING)
    assert remote_tree(s3, "bucket/mine") == {"notes.txt": b"keep"}


def test_too_many_dropped_records_leave_only_their_list(
    s3: fsspec.AbstractFileSystem, source: Path, fails: Callable[..., str]
) -> None:
    out = ("--out", "s3://bucket/refused", *SHARDING)
    assert "1 of 60" in fails("shard", "folder", source, *out, "--tolerate", 0.001)
    assert remote_tree(s3, "bucket/refused") == {}
    assert b"not an image" in s3.cat_file("bucket/refused.quarantine.jsonl")
    run("shard", "folder", source, *out)


def test_memory_is_written_to_and_an_unknown_protocol_is_one_sentence(
    source: Path, local: dict[str, bytes], fails: Callable[..., str]
) -> None:
    run("shard", "folder", source, "--out", "memory://corpus", *SHARDING)
    assert remote_tree(fsspec.filesystem("memory"), "/corpus") == local
    assert "nonesuch://corpus cannot be used" in fails("shard", "folder", source, "--out", "nonesuch://corpus")


class Unreliable(MemoryFileSystem):
    """Every other write fails."""

    protocol = "unreliable"
    requests = 0

    def pipe_file(self, *arguments: Any, **options: Any) -> None:
        self._fail_every_other()
        super().pipe_file(*arguments, **options)

    def put_file(self, *arguments: Any, **options: Any) -> None:
        self._fail_every_other()
        super().put_file(*arguments, **options)

    def _fail_every_other(self) -> None:
        type(self).requests += 1
        if self.requests % 2:
            raise ConnectionError("reset")


def test_a_store_that_fails_at_times_still_gets_every_file(
    source: Path, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAUSES_S", (0.0, 0.0, 0.0))
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    run("shard", "folder", source, "--out", "unreliable://once/corpus", *SHARDING)
    assert remote_tree(fsspec.filesystem("unreliable"), "unreliable://once/corpus") == local
    assert Unreliable.requests > 2 * len(local)
