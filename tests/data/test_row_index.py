"""Every flipped bit in a row is noticed when the row is read, and a damaged row index is named."""

import json
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_shards import make_rows, write_shards

from data_tools.__main__ import main as data_tools
from data_tools.row_index import add_indexes
from mvlm.check.shards import shard_problems
from mvlm.data.images.encoded import ChangedImage
from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.shards.corpus import Corpus, UnreadableRow
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.schema import MANIFEST, read_manifest
from mvlm.errors import UserError
from tests.conftest import eval_args, pair_args


@pytest.fixture(scope="module")
def indexed(folder, tmp_path_factory):
    """A copy of the corpus with row indexes."""
    copy = tmp_path_factory.mktemp("indexed") / "s"
    shutil.copytree(folder, copy)
    assert data_tools(["row-index", str(copy)]) == 0
    return copy


def flip(path: Path, byte: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        (old,) = file.read(1)
        file.seek(byte)
        file.write(bytes([old ^ 1 << bit]))


def crc32_of(row) -> int:
    """The CRC-32 of a row of captions by the description of the format."""
    key, source, *captions = (text.encode() for text in (row["key"], row["source"], *row["captions"]))
    numbers = [len(key), len(captions), *map(len, captions), len(source), row["width"], row["height"], row["crc32"]]
    return zlib.crc32(struct.pack(f"<{len(numbers)}q", *numbers) + key + b"".join(captions) + source)


def test_an_index_has_the_documented_format(indexed, rows):
    shards = read_manifest(indexed).shards
    read = 0
    for shard in shards:
        content, arrow = (indexed / shard.index.file).read_bytes(), (indexed / shard.file).read_bytes()
        magic, version, checked, size, count, batches, buffers = struct.unpack_from("<8sIIQQQQ", content)
        assert (magic, version, size, count) == (b"mvlmrows", 1, len(arrow), shard.rows)
        at = 48
        starts = struct.unpack_from(f"<{batches + 1}Q", content, at)
        places = struct.unpack_from(f"<{2 * batches * buffers}Q", content, at + 8 * len(starts))
        end = at + 8 * len(starts) + 8 * len(places)
        assert zlib.crc32(content[:12] + content[16:end]) == checked
        assert [*struct.unpack_from(f"<{count}I", content, end)] == [*map(crc32_of, rows[read : read + count])]
        assert len(content) == end + 4 * count
        for batch in range(batches):  # the images are the third and fourth buffer
            offsets_at, _, first, length = places[2 * batch * buffers + 4 :][:4]
            in_it = starts[batch + 1] - starts[batch]
            offsets = struct.unpack_from(f"<{in_it + 1}i", arrow, offsets_at)
            assert offsets[-1] == length
            for number in range(in_it):
                image = arrow[first + offsets[number] : first + offsets[number + 1]]
                assert image == rows[read + starts[batch] + number]["image"]
        read += count
    assert read == len(rows)


def test_adding_indexes_changes_no_run(folder, indexed, tokenizer, config):
    assert not list(folder.glob("*.index"))
    before, after = (
        PairDataset(Mixture([place]), tokenizer, *pair_args(config), (4, 4)) for place in (folder, indexed)
    )
    assert before.mixture.fingerprint == after.mixture.fingerprint
    for name in sorted(path.name for path in folder.glob("*.arrow")):
        assert (folder / name).read_bytes() == (indexed / name).read_bytes()
    for row in range(0, 130, 7):
        assert before.mixture.row(row) == after.mixture.row(row)
        assert (before.sample(3, row).images == after.sample(3, row).images).all()
    assert add_indexes(indexed) == 0
    # The manifest that versions without row indexes read is otherwise unchanged.
    old, new = (json.loads((place / MANIFEST).read_text()) for place in (folder, indexed))
    assert len(new.pop("indexes")) == 3 and new == old


def test_no_flipped_bit_is_trained_on(tmp_path, tokenizer, config):
    """One bit is flipped in each of 200 images and 200 captions, and all 400 are noticed."""
    rows = make_rows(900)
    for number, row in enumerate(rows):
        row["captions"] = [f"{number:03d} {caption}" for caption in row["captions"]]  # so that none is part of another
    place = write_shards(tmp_path / "s", rows, shard_rows=300)
    add_indexes(place)
    whole = [path.read_bytes() for path in sorted(place.glob("*.arrow"))]
    dice = random.Random(0)
    damaged = dice.sample(range(len(rows)), 400)
    for nth, number in enumerate(damaged):
        part = rows[number]["image"] if nth < 200 else dice.choice(rows[number]["captions"]).encode()
        at = whole[number // 300].index(part) + dice.randrange(len(part))
        flip(place / f"{number // 300:06d}.arrow", at, dice.randrange(8))
    dataset = PairDataset(Mixture([place]), tokenizer, *pair_args(config), (4, 4))
    for position, number in enumerate(damaged):
        sample = dataset.sample(position, number)
        assert sample.faults[0].row == number and "checksum differs" in sample.faults[0].reason
        assert ("image" in sample.faults[0].reason) == (position < 200)
        assert sample.row not in damaged
    for number in set(range(len(rows))) - set(damaged):
        assert dataset.sample(0, number).faults == ()


def test_evaluation_names_a_caption_that_changed(indexed, tmp_path, tokenizer, config, rows):
    copy = shutil.copytree(indexed, tmp_path / "copy")
    shard = copy / "000000.arrow"
    flip(shard, shard.read_bytes().index("".join(rows[3]["captions"]).encode()))
    with pytest.raises(UserError, match=r"000000\.arrow row 3 \(key 'k00003'\).*texts are not those"):
        EvalDataset(Mixture([copy]), tokenizer, *eval_args(config))


@pytest.mark.parametrize("task", ["vqa", "pairs", "entailment", "foils"])
def test_any_bit_of_a_row_of_any_task_is_noticed(task, tmp_path):
    words = ["synth", "--task", task, "--count", "12", "--out", str(tmp_path / "s")]
    assert data_tools(words) == 0
    manifest = read_manifest(tmp_path / "s")
    shard = tmp_path / "s/000000.arrow"
    whole, corpus = shard.read_bytes(), Corpus(tmp_path / "s", task=manifest.task)
    rows = [corpus.row(number) for number in range(12)]
    assert all(encoded.checked() for row in rows for encoded in row.encoded)
    arrow = pa.py_buffer(whole)
    batch = pa.ipc.open_file(arrow).get_batch(0)
    dice = random.Random(1)
    for column in batch.columns:
        for buffer in filter(None, column.buffers()):
            used = 2 if pa.types.is_boolean(column.type) else buffer.size  # and four bits of the second byte
            flip(shard, buffer.address - arrow.address + dice.randrange(used), dice.randrange(4))
            now, noticed = Corpus(tmp_path / "s", task=manifest.task), 0
            for number in range(12):
                try:
                    assert all(encoded.checked() for encoded in now.row(number).encoded)
                except (UnreadableRow, ChangedImage):
                    noticed += 1
            assert noticed, column.type
            shard.write_bytes(whole)


def test_a_damaged_index_is_named(indexed, tmp_path, tokenizer, config):
    def spoilt(change):
        copy = shutil.copytree(indexed, tmp_path / f"copy{len(list(tmp_path.iterdir()))}")
        change(copy / "000001.index")
        return copy

    def check_refused(copy, reason):
        with pytest.raises(UserError, match=rf"000001\.(index|arrow) .*{reason}.*mvlm-data row-index {copy}"):
            Mixture([copy]).row(60)
        Mixture([copy]).row(10)
        assert [reason in sentence for sentence in shard_problems(copy, read_manifest(copy), deep=False)] == [True]
        assert add_indexes(copy) == 1
        assert Mixture([copy]).row(60).key == "k00060"

    check_refused(spoilt(Path.unlink), "is missing")
    check_refused(spoilt(lambda path: path.write_bytes(path.read_bytes()[:-1])), "bytes and not")
    check_refused(spoilt(lambda path: flip(path, 3)), "not a row index")
    check_refused(spoilt(lambda path: flip(path, 8, 2)), "version 5 and not 1")
    check_refused(spoilt(lambda path: flip(path, 70)), "head is damaged")
    check_refused(spoilt(lambda path: shutil.copy(path.with_name("000000.index"), path)), "another shard")
    # A flipped bit in a checksum loses its row, and the message names the index as the cause.
    copy = spoilt(lambda path: flip(path, path.stat().st_size - 1))
    fault = PairDataset(Mixture([copy]), tokenizer, *pair_args(config), (4, 4)).sample(0, 99).faults[0]
    assert "its row index has changed too" in fault.reason and f"row-index {copy}" in fault.reason
    assert shard_problems(copy, read_manifest(copy), deep=False) == []
    (sentence,) = shard_problems(copy, read_manifest(copy), deep=True)
    assert "000001.index has changed" in sentence


def test_a_damaged_shard_gets_no_index_but_others_do(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "copy")
    flip(copy / "000001.arrow", 5000)
    assert data_tools(["row-index", str(copy)]) == 1
    assert "000001.arrow has changed since it was written" in capsys.readouterr().err
    assert [bool(shard.index) for shard in read_manifest(copy).shards] == [True, False, True]
    assert Mixture([copy]).row(120).key == "k00120"


def test_a_tokenizer_is_trained_without_damaged_rows(indexed, tmp_path, rows):
    copy = shutil.copytree(indexed, tmp_path / "copy")
    shard = copy / "000000.arrow"
    flip(shard, shard.read_bytes().index("".join(rows[3]["captions"]).encode()))
    errors = []
    mixture = Mixture([copy])
    keys = [row.key for row in mixture.sound(range(10), errors.append)]
    assert keys == [row["key"] for row in rows[:10] if row["key"] != "k00003"]
    assert [error.key for error in errors] == ["k00003"] and mixture.key(3) == "k00003"


def test_without_an_index_images_are_checked_and_captions_are_not(folder, tmp_path, rows, tokenizer, config):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shard = copy / "000000.arrow"
    flip(shard, shard.read_bytes().index(rows[3]["image"]) + 30)
    flip(shard, shard.read_bytes().index("".join(rows[4]["captions"]).encode()))
    dataset = PairDataset(Mixture([copy]), tokenizer, *pair_args(config), (4, 4))
    assert dataset.sample(0, 3).faults[0].row == 3 and dataset.sample(0, 4).faults == ()
    assert np.array_equal(dataset.sample(0, 5).images, dataset.sample(0, 5).images)
