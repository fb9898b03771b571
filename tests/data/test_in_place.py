"""Training on images that stay in existing tars, Arrow and parquet files."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_shards import make_rows, write_shards
from PIL import Image
from test_loader import stream

import mvlm
from data_tools.__main__ import main
from mvlm.data.images.encoded import ChangedImage
from mvlm.data.loading.order import MixtureSampler
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.shards.forms import recognise
from mvlm.data.shards.in_place import KEPT, MARK, PlaceInFile, image_bytes, reference, resolved
from mvlm.data.shards.indexed import located
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from tests.conftest import ROOT, pair_args
from tests.pictures import encoded
from tests.tars import add_file

ROWS = 60


@pytest.fixture(scope="module")
def pictures():
    """Rows of pictures with one caption or more."""
    return make_rows(ROWS)


def write_tar(path, rows, mode="w"):
    with tarfile.open(path, mode) as tar:
        for row in rows:
            about = json.dumps({"captions": row["captions"]}).encode()
            for ending, content in (("jpg", row["image"]), ("json", about)):
                add_file(tar, f"{row['key']}.{ending}", content)


def table_of(rows):
    images = [{"bytes": row["image"], "path": None} for row in rows]
    columns = {"image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    return pa.table(columns | {"captions": [row["captions"] for row in rows], "key": [row["key"] for row in rows]})


@pytest.fixture(scope="module")
def tars(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    for number in range(2):
        write_tar(folder / f"{number}.tar", pictures[number * 30 : number * 30 + 30])
    return folder


@pytest.fixture(scope="module")
def saved(pictures, tmp_path_factory):
    return as_arrow(tmp_path_factory.mktemp("saved"), pictures)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def shard(source, paths, out, *options):
    assert main(["shard", source, *map(str, paths), *options, "--workers", "1", "--out", str(out)]) == 0
    return out


def test_tars_give_the_same_stream_as_shards_and_resume_on_other_ranks(tars, pictures, tokenizer, config, tmp_path):
    """`data.train = "tars/*.tar"` compared with plain shards of the same rows."""
    in_shards = Mixture([write_shards(tmp_path / "shards", pictures)], pairs=True)
    in_tars = Mixture([f"{tars}/*.tar"], pairs=True)
    index = b"".join(path.read_bytes() for path in in_tars.corpora[0].location.folder.glob("*.arrow"))
    assert index and not any(row["image"][:64] in index for row in pictures)
    draws = MixtureSampler([in_shards.per_epoch], [1.0], 7, 8, 4)
    plain, in_place = (PairDataset(each, tokenizer, *pair_args(config), (4, 4)) for each in (in_shards, in_tars))
    expected = stream(plain, draws)
    assert stream(in_place, draws, steps=4, world=2, workers=1) == expected[:4]
    assert stream(in_place, draws, steps=6, start=4 * 16, world=1, micro_batch=8) == expected[4:]


def test_an_index_is_made_once_and_again_when_a_file_has_changed(tars, pictures, tmp_path):
    (tmp_path / "0.tar").write_bytes((tars / "0.tar").read_bytes())
    first = located(tmp_path)
    made = (first / "manifest.json").stat().st_mtime_ns
    assert located(tmp_path) == first and (first / "manifest.json").stat().st_mtime_ns == made
    write_tar(tmp_path / "0.tar", pictures[:7])
    assert located(tmp_path) != first and len(mvlm.open(tmp_path)) == 7
    assert located(first) == first


def as_arrow(folder, rows):
    """A data set as `datasets` saves it: a stream of record batches."""
    with pa.ipc.new_stream(folder / "data-0.arrow", table_of(rows).schema) as stream:
        stream.write_table(table_of(rows), max_chunksize=16)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    return folder


def as_parquet(**settings):
    def write(folder, rows):
        pq.write_table(table_of(rows), folder / "p.parquet", row_group_size=16, **settings)
        return folder / "p.parquet"

    return write


def with_plain_bytes(folder, rows):
    table = pa.table({"jpg": [row["image"] for row in rows], "captions": [row["captions"] for row in rows]})
    pq.write_table(table, folder / "p.parquet", row_group_size=16)
    return folder / "p.parquet"


@pytest.mark.parametrize(
    "write",
    [
        as_arrow,
        as_parquet(compression="none"),
        as_parquet(compression="snappy"),
        as_parquet(compression="snappy", use_dictionary=False, data_page_version="2.0", data_page_size=4096),
        with_plain_bytes,
    ],
    ids=["arrow", "plain", "snappy", "pages of version 2", "a column of bytes"],
)
def test_images_are_read_in_place_as_they_were_saved(pictures, tmp_path, write):
    """One of them occurs twice, and one is compressible."""
    drawn = encoded(Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))), "bmp")
    rows = [
        *pictures[:5],
        pictures[2],
        pictures[3] | {"key": "drawn", "image": drawn},
        *pictures[5:],
        pictures[9],
    ]
    found = mvlm.open(shard("hf", [write(tmp_path, rows)], tmp_path / "out", "--in-place", "--shard-mb", "0.02"))
    assert [row.encoded for row in found] == [row["image"] for row in rows]
    assert [row.captions for row in found] == [row["captions"] for row in rows]
    assert main(["verify", str(tmp_path / "out"), "--workers", "1"]) == 0
    shards = b"".join(path.read_bytes() for path in (tmp_path / "out").glob("*.arrow"))
    assert sum(len(row["image"]) for row in pictures) > 2 * len(shards)


def test_readers_and_verify_notice_a_changed_tar(tars, tmp_path, capsys):
    tar = tmp_path / "0.tar"
    tar.write_bytes((tars / "0.tar").read_bytes())
    folder = shard("webdataset", [tar], tmp_path / "out", "--in-place")
    row = mvlm.open(folder)[3]
    content = bytearray(tar.read_bytes())
    content[content.index(row.encoded) + 40] ^= 1
    tar.write_bytes(content)
    with pytest.raises(UserError, match=f"{row.key}.*checksum differs"):
        _ = mvlm.open(folder)[3].encoded
    assert mvlm.open(folder)[4].encoded
    assert main(["verify", str(folder), "--workers", "1"]) == 1
    assert row.key in capsys.readouterr().err
    tar.unlink()
    other = tmp_path / "1.tar"
    other.write_bytes(b"short")
    with pytest.raises(UserError, match=r"missing\.tar cannot be read .* put it back"):
        resolved(reference(PlaceInFile(tmp_path / "missing.tar", ((0, 1),))))
    with pytest.raises(UserError, match=r"1\.tar cannot be read \(it is shorter"):
        resolved(reference(PlaceInFile(other, ((3, 3),))))


def test_a_damaged_reference_is_not_followed(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(range(100)))
    whole = reference(PlaceInFile(tmp_path / "a.tar", ((7, 3), (KEPT, 2), (20, 1), (KEPT, 1)), b"xyz"))
    assert resolved(whole) == bytes([7, 8, 9, *b"xy", 20, *b"z"])
    assert image_bytes(whole) == 7 and image_bytes(b"an image") == 8
    for at in range(len(MARK), len(whole)):
        with pytest.raises(ChangedImage):
            resolved(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert resolved(b"an image") == b"an image"


def test_compressed_files_are_refused_with_the_command_that_makes_shards(tars, pictures, tmp_path):
    write_tar(tmp_path / "a.tar.gz", pictures[:3], "w:gz")
    pq.write_table(table_of(pictures[:3]), tmp_path / "b.parquet", compression="zstd")
    for name, source in (("a.tar.gz", "webdataset"), ("b.parquet", "hf")):
        with pytest.raises(UserError, match=f"make shards of it with `mvlm-data shard {source} .*{name}"):
            mvlm.open(tmp_path / name)
        assert main(["shard", source, str(tmp_path / name), "--in-place", "--out", str(tmp_path / "x")]) == 1
    with pytest.raises(UserError, match="No shards"):
        mvlm.open(tmp_path / "nothing/*.tar")


def test_the_form_of_a_corpus_is_recognised(tars, saved, tmp_path):
    (tmp_path / "json").mkdir()
    (tmp_path / "json/captions.jsonl").touch()
    (tmp_path / "text").mkdir()
    for name in ("a.JPG", "a.txt"):
        (tmp_path / "text" / name).touch()
    (tmp_path / "parts").mkdir()
    for name in ("parts/0.parquet", "pairs.tsv", "one.parquet"):
        (tmp_path / name).touch()
    names = {"json": "folder", "text": "side_by_side", "parts": "hf", "pairs.tsv": "table", "one.parquet": "hf"}
    found = {name: recognise(tmp_path / name) for name in names}
    assert {name: form.source for name, form in found.items()} == names
    assert not any(form.stays for form in found.values())
    for place, source in ((f"{tars}/*.tar", "webdataset"), (tars, "webdataset"), (saved, "hf")):
        form = recognise(place)
        assert (form.source, form.stays) == (source, True)
    form = recognise(saved / "data-0.arrow")
    assert (form.source, form.stays) == ("hf", True)
    assert len(Mixture([f"{saved}/*.arrow"])) == ROWS
    assert recognise(ROOT / "examples/emoji.tar").source == "folder"
    assert recognise(Path("README.md")) is None
    assert recognise(write_shards(tmp_path / "s", make_rows(3)) / "000000.arrow") is None
    with pytest.raises(UserError, match="Nothing is at"):
        recognise(tmp_path / "nothing")
