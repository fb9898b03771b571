"""Shards are hashed with BLAKE3; older ones, hashed with SHA-256, are still read, checked and indexed."""

import hashlib
import json
import shutil

import pytest
from blake3 import blake3
from made_shards import make_rows, write_shards

from data_tools.row_index import add_indexes
from mvlm.data.shards.corpus import Corpus
from mvlm.data.shards.integrity import check_hash
from mvlm.data.shards.schema import MANIFEST, read_manifest
from mvlm.errors import UserError


def as_version_1(folder):
    """Replace the manifest by one of version 1, with SHA-256 hashes."""
    content = json.loads((folder / MANIFEST).read_text())
    content["version"] = 1
    for shard in content["shards"]:
        del shard["blake3"]
        shard["sha256"] = hashlib.sha256((folder / shard["file"]).read_bytes()).hexdigest()
    content["fingerprint"] = hashlib.sha256("".join(s["sha256"] for s in content["shards"]).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    rows = make_rows(30)
    new = write_shards(tmp_path_factory.mktemp("new") / "s", rows, shard_rows=10)
    return {2: new, 1: as_version_1(shutil.copytree(new, tmp_path_factory.mktemp("old") / "s"))}


@pytest.mark.parametrize(("version", "name", "hashed"), [(1, "sha256", hashlib.sha256), (2, "blake3", blake3)])
def test_the_manifest_names_the_hash_of_its_shards(corpora, version, name, hashed):
    text = (corpora[version] / MANIFEST).read_text()
    content, manifest = json.loads(text), read_manifest(corpora[version])
    assert content["version"] == version and manifest.to_json() == text
    for shard, entry in zip(manifest.shards, content["shards"], strict=True):
        assert shard.hash == entry[name] == hashed((corpora[version] / shard.file).read_bytes()).hexdigest()
        check_hash(corpora[version], shard)


@pytest.mark.parametrize("version", [1, 2])
def test_a_changed_shard_is_found_by_either_hash(corpora, tmp_path, version):
    folder = shutil.copytree(corpora[version], tmp_path / "s")
    shard = read_manifest(folder).shards[1]
    content = bytearray((folder / shard.file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / shard.file).write_bytes(content)
    with pytest.raises(UserError, match=r"000001\.arrow has changed since it was written"):
        check_hash(folder, shard)


def test_older_shards_give_the_same_rows_and_can_be_indexed_without_a_new_version(corpora, tmp_path):
    folder = shutil.copytree(corpora[1], tmp_path / "s")
    before = read_manifest(folder)
    assert add_indexes(folder) == 3
    after = read_manifest(folder)
    assert (after.fingerprint, json.loads((folder / MANIFEST).read_text())["version"]) == (before.fingerprint, 1)
    old, new = Corpus(folder), Corpus(corpora[2])
    assert [old.row(n).key for n in range(30)] == [new.row(n).key for n in range(30)]
    assert [bytes(old.row(n).image) for n in range(30)] == [bytes(new.row(n).image) for n in range(30)]


def test_a_manifest_with_an_unknown_hash_is_refused(corpora, tmp_path):
    folder = shutil.copytree(corpora[2], tmp_path / "s")
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace('"blake3"', '"md5"'))
    with pytest.raises(UserError, match="not a valid manifest"):
        read_manifest(folder)
