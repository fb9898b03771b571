"""Rows taken down are gone for every reader, and nothing else changes."""

import hashlib
import json
import re
import shutil

import fsspec
import numpy as np
import pytest
from made_shards import make_rows, write_shards
from made_tables import add_tables

from data_tools.__main__ import main
from data_tools.corpora import batches, kept_rows
from data_tools.takedown import TakenDown, take_down
from mvlm.config.schema import Data
from mvlm.data.loading.sampler import make_sampler, order_of
from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.mixture import Mixture, kept_sentences, training_mixture
from mvlm.data.shards.schema import read_manifest
from mvlm.errors import UserError
from mvlm.training.health.quarantine import Quarantine
from tests.conftest import pair_args

ROWS, GONE = 40, [3, 6, 7, 20, 39]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = write_shards(tmp_path_factory.mktemp("whole") / "s", make_rows(ROWS, 9), 7)
    return add_tables(
        folder,
        "meta",
        [{"url": [f"http://x/{n}" for n in part]} for part in np.split(np.arange(ROWS), range(7, ROWS, 7))],
    )


@pytest.fixture(scope="module")
def reduced(whole, tmp_path_factory):
    """The same corpus after a key, two URLs and two hashes have been taken down, with two lists."""
    folder = tmp_path_factory.mktemp("reduced") / "s"
    shutil.copytree(whole, folder)
    mixture, lists = Mixture([whole]), folder.parent
    hashes = [hashlib.sha256(bytes(mixture.row(row).image)).hexdigest() for row in GONE[3:]]
    (lists / "a").write_text("\n".join([mixture.key(GONE[0]), "http://x/6", "http://x/7", "", "http://y/"]))
    (lists / "b").write_text("\n".join([hashes[0], hashes[1].upper(), "http://x/6"]))
    for name in "ab":
        assert main(["takedown", str(folder), "--list", str(lists / name)]) == 0
    return folder


def samples(folder, tokenizer, config):
    mixture = training_mixture(Data(train=(str(folder),), text_length=14))
    dataset = PairDataset(mixture, tokenizer, *pair_args(config), (4, 4))
    positions = np.arange(120)
    numbers, times = make_sampler(mixture, 7, [order_of(config.data)])(positions)
    drawn = zip(positions.tolist(), numbers.tolist(), times.tolist(), strict=True)
    return mixture, [dataset.sample(*draw) for draw in drawn]


def test_only_the_rows_taken_down_are_replaced_and_all_keep_their_numbers(whole, reduced, tokenizer, config, tmp_path):
    before, old = samples(whole, tokenizer, config)
    after, new = samples(reduced, tokenizer, config)
    assert (before.fingerprint, before.per_epoch, before.selection) == (
        after.fingerprint,
        after.per_epoch,
        after.selection,
    )
    assert {row for row in range(ROWS) if after.is_taken_down(row)} == set(GONE)
    replaced = 0
    for one, other in zip(old, new, strict=True):
        if one.row in GONE:
            replaced += 1
            assert other.row not in GONE and other.faults
        else:
            assert (one.row, one.faults) == (other.row, other.faults)
            assert (one.images == other.images).all() and (one.masked_text_L == other.masked_text_L).all()
    assert replaced > 5
    again = samples(reduced, tokenizer, config)[1]
    assert [sample.row for sample in again] == [sample.row for sample in new]
    quarantine = Quarantine(tmp_path, 0.0, ROWS)  # must count none of them
    quarantine.add([fault for sample in new for fault in sample.faults], len(new))
    assert len(quarantine) == 0


def test_evaluation_and_the_tools_skip_them(whole, reduced, tokenizer, tmp_path):
    left = [Mixture([whole]).key(row) for row in range(ROWS) if row not in GONE]
    seen = EvalDataset(Mixture([reduced]), tokenizer, 14, 32)
    assert [seen.mixture.key(row) for row in range(len(seen))] == left
    keys = [
        key
        for batch in batches(reduced, read_manifest(reduced), kept_rows(reduced))
        for key in batch["key"].to_pylist()
    ]
    assert keys == left
    assert main(["merge", str(reduced), "--out", str(tmp_path / "merged")]) == 0
    merged = Mixture([tmp_path / "merged"])
    assert [merged.key(row) for row in range(len(merged))] == left
    assert main(["preview", str(reduced), "--out", str(tmp_path / "p.html"), "--count", "40"]) == 0
    page = (tmp_path / "p.html").read_text()
    assert left[0] in page and Mixture([whole]).key(3) not in page


def test_a_new_run_makes_its_tokenizer_and_answers_without_them(reduced):
    read = [row.key for row in Mixture([reduced], trains=True).sound(range(ROWS))]
    assert read == [Mixture([reduced]).key(row) for row in range(ROWS - len(GONE))]


def test_a_selection_includes_them_under_their_new_numbers(reduced):
    mixture = Mixture([reduced], where=["url != 'http://x/4'"], trains=True)
    assert len(mixture) == ROWS - 1  # without row 4, which was not taken down
    assert [row for row in range(len(mixture)) if mixture.is_taken_down(row)] == [3, 5, 6, 19, 38]


def test_an_invalid_list_is_refused(reduced, whole, tmp_path, capsys):
    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    first = read_manifest(folder).shards[0].hash

    def listing(rows):
        return json.dumps({"format": "mvlm-takedown", "version": 1, "shards": {first: rows}})

    for content, reason in (
        ("{", "JSON"),
        (listing([7]), "has no row 7"),
        (listing([-1, 5]), "has no row -1"),
        (listing([1.5]), "'float' object cannot be interpreted"),
        (listing(["1"]), "'str' object cannot be interpreted"),
    ):
        (folder / "takedown.json").write_text(content)
        with pytest.raises(UserError, match=rf"takedown\.json is not a valid list.*{reason}"):
            Mixture([folder])
    (folder / "takedown.json").unlink()
    (tmp_path / "list").write_text("k")
    assert main(["takedown", str(folder), "--list", str(tmp_path / "list"), "--by", "hash"]) == 1
    (tmp_path / "list").write_bytes(b"k\xfc")
    assert main(["takedown", str(folder), "--list", str(tmp_path / "list")]) == 1
    assert f"{tmp_path}/list cannot be read ('utf-8' codec" in capsys.readouterr().err
    assert not (folder / "takedown.json").exists()


def test_hashes_match_in_upper_and_lower_case(tmp_path, capsys):
    """Hashes in a column, which only some rows have, and those of the images of the others."""
    folder = write_shards(tmp_path / "s", make_rows(6, 9), 6)
    md5 = [hashlib.md5(bytes([row])).hexdigest() for row in range(6)]
    columns = {"sha256": [None, None, None, "AB" * 32, "cd" * 32, None], "md5": [*md5[:5], md5[5].upper()]}
    add_tables(folder, "meta", [columns])
    sha256 = hashlib.sha256(bytes(Mixture([folder]).row(1).image)).hexdigest()
    mixed = [sha256[:32] + sha256[32:].upper(), "ab" * 32, "Cd" * 32, md5[2].upper(), md5[5]]
    (tmp_path / "list").write_text("\n".join([*mixed, "F" * 64]))
    assert main(["takedown", str(folder), "--list", str(tmp_path / "list")]) == 0
    assert "5 rows taken down, 5 of them now\n1 of 6 lines name no row: " in capsys.readouterr().out
    assert list(Mixture([folder], trains=True).corpora[0].location.taken_down) == [1, 2, 3, 4, 5]


def test_a_damaged_shard_is_named_when_its_images_are_hashed(whole, tmp_path, capsys):
    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    (tmp_path / "list").write_text("f" * 64)
    key = Mixture([whole]).key(14).encode()
    for name, bytes_there in (("000001.arrow", b"ARROW1"), ("000002.arrow", key)):
        content = (folder / name).read_bytes()
        place = content.rindex(bytes_there)
        (folder / name).write_bytes(content[:place] + b"\xff" * 6 + content[place + 6 :])
        assert main(["takedown", str(folder), "--list", str(tmp_path / "list")]) == 1
        assert f"{name} cannot be read (" in capsys.readouterr().err
        shutil.copy(whole / name, folder / name)


def test_a_full_disk_is_named_and_the_list_stays_as_it_was(whole, tmp_path, mount_disk, capsys):
    folder, listed = mount_disk("1m") / "s", tmp_path / "list"
    shutil.copytree(whole, folder)
    listed.write_text("http://x/3")
    assert main(["takedown", str(folder), "--list", str(listed)]) == 0
    before = (folder / "takedown.json").read_bytes()
    with pytest.raises(OSError, match="No space left"), open(folder.parent / "filler", "wb") as filler:
        while True:
            filler.write(bytes(4096))
    listed.write_text("http://x/4")
    assert main(["takedown", str(folder), "--list", str(listed)]) == 1
    assert re.search(f"{folder}/takedown.json cannot be written .*No space left on device", capsys.readouterr().err)
    assert (folder / "takedown.json").read_bytes() == before


def test_two_lists_taken_down_at_the_same_time_both_apply(whole, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    mixture, taken = Mixture([whole]), []

    class Columns(tuple):
        """Takes down another list while these are compared."""

        def __contains__(self, name):
            if not taken:
                taken.append(take_down(folder, {mixture.key(3)}))
            return super().__contains__(name)

    assert take_down(folder, {mixture.key(4), mixture.key(20)}, Columns(["key"])) == TakenDown(3, 2, frozenset())
    assert taken == [TakenDown(1, 1, frozenset())]
    assert list(Mixture([folder], trains=True).corpora[0].location.taken_down) == [3, 4, 20]


def test_a_corpus_whose_rows_are_all_taken_down_is_refused_with_that_reason(whole, tmp_path, capsys):
    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    (tmp_path / "list").write_text("\n".join(map(Mixture([whole]).key, range(ROWS))))
    assert main(["takedown", str(folder), "--list", str(tmp_path / "list")]) == 0
    for trains in (False, True):
        with pytest.raises(UserError, match=f"^All rows of {folder} were taken down: "):
            Mixture([folder], trains=trains)
    assert main(["stats", str(folder)]) == 1
    assert f"All rows of {folder} were taken down: " in capsys.readouterr().err


def test_rows_of_a_corpus_at_a_url_are_taken_down_by_urls_and_hashes(whole, reduced, tmp_path, capsys):
    files, url = fsspec.filesystem("memory"), "memory://taken/s"
    files.put(str(whole), "/taken/s", recursive=True)
    try:
        sha256 = hashlib.sha256(bytes(Mixture([whole]).row(20).image)).hexdigest()
        for text in ("http://x/3\nhttp://x/6\nhttp://nowhere/\n", f"http://x/7\nhttp://x/39\n{sha256}\n"):
            (tmp_path / "list").write_text(text)
            assert main(["takedown", url, "--list", str(tmp_path / "list")]) == 0
        out = capsys.readouterr().out
        assert "2 rows taken down, 2 of them now\n1 of 3 lines name no row: http://nowhere/\n" in out
        assert "5 rows taken down, 3 of them now\n0 of 3 lines name no row\n" in out
        cache = Cache(str(tmp_path / "cache"))
        there, here = (Mixture([place], cache=cache, trains=True) for place in (url, reduced))
        assert [there.is_taken_down(row) for row in range(ROWS)] == [here.is_taken_down(row) for row in range(ROWS)]
        assert len(Mixture([url], cache=cache)) == ROWS - len(GONE)
    finally:
        files.rm("/taken", recursive=True)


def test_a_running_run_keeps_rows_until_it_is_resumed_and_then_reports_how_many_are_gone(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s")
    running = Mixture([tmp_path / "s"], trains=True)
    (tmp_path / "list").write_text("http://x/3\nhttp://x/6\n")
    assert main(["takedown", str(tmp_path / "s"), "--list", str(tmp_path / "list")]) == 0
    assert not any(map(running.is_taken_down, range(ROWS))) and kept_sentences(running) == []
    resumed = Mixture([tmp_path / "s"], trains=True)
    assert [row for row in range(ROWS) if resumed.is_taken_down(row)] == [3, 6]
    assert resumed.fingerprint == running.fingerprint
    assert kept_sentences(resumed) == [f"{tmp_path / 's'} has 2 rows taken down: others take their places."]
