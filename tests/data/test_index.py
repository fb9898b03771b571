"""The raw reader gives the same rows as pyarrow, and names what is broken."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from made_shards import make_rows, write_shards

from data_tools.__main__ import main as data_tools_main
from data_tools.row_index import add_indexes
from mvlm.data.shards.corpus import Corpus, UnreadableRow
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.schema import MANIFEST, SCHEMA
from mvlm.errors import UserError


def as_dict(row):
    (encoded,) = row.encoded
    assert row.own == {}
    about = {name: getattr(row, name) for name in ("key", "captions", "source", "width", "height")}
    return about | {"image": bytes(encoded.data), "crc32": encoded.crc32}


def test_rows_equal_those_of_to_pylist(folder):
    read = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in sorted(folder.glob("*.arrow"))]
    expected = [row for table in read for row in table.to_pylist()]
    corpus = Corpus(folder)
    assert [as_dict(corpus.row(i)) for i in range(len(corpus))] == expected
    assert [corpus.row(i).captions for i in range(len(corpus))] == [row["captions"] for row in expected]


def test_an_image_is_a_slice_of_the_mapped_file(folder, rows):
    before = pa.total_allocated_bytes()
    corpus = Corpus(folder)
    views = [corpus.row(i).image for i in range(len(corpus))]
    assert pa.total_allocated_bytes() - before < 1000
    assert all(isinstance(view, memoryview) and view.readonly for view in views)
    del corpus
    assert [bytes(view) for view in views] == [row["image"] for row in rows]


def test_opening_reads_the_manifest_alone(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    for shard in copy.glob("*.arrow"):
        shard.write_bytes(bytes(shard.stat().st_size))
    corpus = Corpus(copy)
    with pytest.raises(UserError, match=r"000001\.arrow cannot be read.*copy or shard it again"):
        corpus.row(60)


@pytest.mark.parametrize("bound", ["files", "bytes"])
def test_a_bounded_number_of_shards_stays_open(tmp_path, bound):
    """Two corpora share the bound, whatever is read, in threads and after pickling."""
    rows = make_rows(20)
    folders = [write_shards(tmp_path / name, rows, shard_rows=2) for name in ("a", "b")]
    mixture, open_files = Mixture(folders), len(os.listdir("/proc/self/fd"))
    shared = mixture.corpora[0]._open_shards
    if bound == "files":
        shared.shards = 3
    else:
        shared.bytes = 3 * max(shard.bytes for shard in mixture.corpora[0].manifest.shards)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda row: mixture.row(row).key, [*range(40), *range(0, 40, 7)]))
    assert read == [rows[row % 20]["key"] for row in [*range(40), *range(0, 40, 7)]]
    opened = [len(shard.file.data) for corpus in mixture.corpora for shard in corpus._opened.values()]
    assert 1 <= len(opened) < 10 and (len(opened) <= 3 if bound == "files" else sum(opened) <= shared.bytes)
    assert len(os.listdir("/proc/self/fd")) <= open_files + 2 * len(opened)
    copied = pickle.loads(pickle.dumps(mixture))
    assert copied.corpora[0]._open_shards is copied.corpora[1]._open_shards
    assert copied.row(33).key == rows[13]["key"] and not copied.corpora[0]._opened


def test_a_process_uses_an_eighth_of_the_files_that_it_may_open():
    """A low soft limit is raised; the hard one is respected."""
    script = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (64, {})); import mvlm.data.shards.opened as o; "
    script += "print(o.OpenShards().shards, *r.getrlimit(r.RLIMIT_NOFILE))"
    for hard in (512, 4096):
        words = [sys.executable, "-c", script.format(hard)]
        found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        assert [*map(int, found)] == [hard // 8, hard, hard]


def test_a_mixture_concatenates_its_corpora(folder, rows, tmp_path):
    other_rows = make_rows(9, seed=5)
    other = write_shards(tmp_path / "other", other_rows, shard_rows=4, batch_rows=3)
    mixture = Mixture([folder, other])
    assert [as_dict(mixture.row(i)) for i in range(len(mixture))] == rows + other_rows
    assert mixture.row(len(rows) + 8).captions == other_rows[8]["captions"]
    assert mixture.where(len(rows) + 5) == f"{other / '000001.arrow'} row 1"
    corpus, local = mixture.locate(len(rows))
    assert corpus.folder == other and local == 0
    for row in (-1, len(mixture)):
        with pytest.raises(IndexError):
            mixture.row(row)


def test_the_fingerprint_depends_on_content_and_order_and_not_on_the_place(folder, tmp_path):
    other = write_shards(tmp_path / "other", make_rows(9, seed=5))
    moved = shutil.copytree(folder, tmp_path / "moved")
    prints = [Mixture(folders).fingerprint for folders in ([folder, other], [moved, other], [other, folder], [folder])]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_a_truncated_shard_is_named_with_the_number_of_lost_rows(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shard = copy / "000001.arrow"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size * 6 // 10])
    with pytest.raises(UserError, match=r"000001\.arrow has \d+ bytes and not \d+: 50 rows are lost"):
        Mixture([copy])
    shard.unlink()
    with pytest.raises(UserError, match=r"000001\.arrow is missing"):
        Mixture([copy])


@pytest.mark.parametrize(("suffix", "named"), [(".arrow", r"0\.arrow"), (".index", r"The row index of \S*0\.arrow")])
def test_a_file_truncated_while_it_is_mapped_is_named(tmp_path: Path, suffix: str, named: str) -> None:
    folder = write_shards(tmp_path / "s", make_rows(20, 1))
    add_indexes(folder)
    mixture = Mixture([folder], pairs=True)
    row = mixture.row(0)
    pair = mixture.numbers.visit(1)
    file = (folder / "000000.arrow").with_suffix(suffix)
    whole = file.read_bytes()
    os.truncate(file, 100 if suffix == ".arrow" else 0)
    for read in (mixture.row, mixture.numbers.visit):
        with pytest.raises(UserError, match=rf"{named} cannot be read \(it no longer has all of its"):
            read(1)
    file.write_bytes(whole)
    assert bytes(mixture.row(0).image) == bytes(row.image) and mixture.numbers.visit(1) == pair


def test_missing_folders_and_empty_corpora_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.train"):
        Mixture([])
    with pytest.raises(UserError, match="the folder does not exist"):
        Mixture([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="holds no rows"):
        Mixture([write_shards(tmp_path / "empty", [])])


def test_a_shard_without_all_columns_is_refused(tmp_path):
    schema = SCHEMA.remove(SCHEMA.get_field_index("crc32"))
    rows = [{name: row[name] for name in schema.names} for row in make_rows(3)]
    corpus = Corpus(write_shards(tmp_path / "s", rows, schema=schema))
    with pytest.raises(UserError, match="columns"):
        corpus.row(0)


def test_a_manifest_with_a_wrong_number_of_rows_is_noticed(tmp_path):
    folder = write_shards(tmp_path / "s", make_rows(3))
    content = json.loads((folder / MANIFEST).read_text())
    content["rows"] = content["shards"][0]["rows"] = 4
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not hold the 4 rows"):
        Corpus(folder).row(0)


def test_an_offset_outside_its_column_is_named(tmp_path):
    """A flipped bit in an offset must neither read other bytes nor crash."""
    rows = make_rows(5)
    folder = write_shards(tmp_path / "s", rows)
    shard = folder / "000000.arrow"
    content = bytearray(shard.read_bytes())
    offsets = b"".join(sum(len(row["image"]) for row in rows[:n]).to_bytes(4, "little") for n in range(6))
    at = content.index(offsets)
    content[at + 4 * 2 + 3] ^= 0x7F
    shard.write_bytes(content)
    corpus = Corpus(folder)
    assert corpus.row(0).key == "k00000"
    with pytest.raises(UnreadableRow, match=r"000000\.arrow row 2 .*offset"):
        corpus.row(2)


def test_a_row_without_captions_is_named(tmp_path):
    rows = make_rows(3)
    rows[1]["captions"] = []
    with pytest.raises(UserError, match=r"row 1 .*no caption"):
        Corpus(write_shards(tmp_path / "s", rows)).row(1)


def test_text_that_is_not_utf8_is_named(tmp_path):
    rows = make_rows(3)
    rows[1]["source"] = "MARKER"
    folder = write_shards(tmp_path / "s", rows)
    shard = folder / "000000.arrow"
    shard.write_bytes(shard.read_bytes().replace(b"MARKER", b"MARK\xff\xfe"))
    with pytest.raises(UserError, match=r"row 1 .*utf-8"):
        Corpus(folder).row(1)


def test_a_corpus_of_another_task_is_refused(tmp_path: Path) -> None:
    words = ["synth", "--task", "vqa", "--count", "40", "--out", str(tmp_path / "vqa")]
    assert data_tools_main(words) == 0
    with pytest.raises(UserError, match=r"vqa.*'vqa' and not 'caption'"):
        Corpus(tmp_path / "vqa")
