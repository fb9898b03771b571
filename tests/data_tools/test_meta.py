"""What a source says about its records is kept beside the shards, and stays with their rows."""

import json
import tarfile
from datetime import date
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import photo, read_rows
from PIL import Image

from data_tools.__main__ import main
from data_tools.meta import MetaColumns, column, joined
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.schema import read_manifest
from tests.pictures import encoded
from tests.tars import add_file

METADATA = [
    {"similarity": 0.4, "nsfw": "UNLIKELY", "license": None, "rank": 1},
    {"similarity": 1, "nsfw": "NSFW", "tags": ["a", 2], "rank": "first"},
    {"similarity": 0.1, "nsfw": "UNLIKELY", "url": "http://x/3", "flag": True},
    {"url": "http://x/4", "caption": "not twice", "width": 99999},
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "a.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number, fields in enumerate(METADATA):
            image = Image.fromarray(rng.integers(0, 256, (12, 20 + number, 3), np.uint8))
            content = {
                "png": encoded(image, "PNG"),
                "json": json.dumps({"caption": f"text {number}"} | fields).encode(),
            }
            for extension, data in content.items():
                add_file(tar, f"k{number}.{extension}", data)
    return path


@pytest.fixture(scope="module")
def shards(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "shards"
    assert main(["shard", "webdataset", str(source), "--workers", "1", "--out", str(out)]) == 0
    return out


EXPECTED = {
    "key": ["k0", "k1", "k2", "k3"],
    "width": [20, 21, 22, 23],
    "captions": [1, 1, 1, 1],
    "similarity": [0.4, 1.0, 0.1, None],
    "nsfw": ["UNLIKELY", "NSFW", "UNLIKELY", None],
    "tags": [None, '["a", 2]', None, None],
    "rank": ["1", "first", None, None],
    "flag": [None, None, True, None],
    "url": [None, None, "http://x/3", "http://x/4"],
}


def metadata_of(folder):
    (shard,) = read_manifest(folder).shards
    table = pq.read_table(folder / shard.table("meta").file).to_pydict()
    assert "caption" not in table
    return {name: table[name] for name in EXPECTED}


def test_metadata_is_written_beside_the_shard_and_meets_conditions(shards):
    assert metadata_of(shards) == EXPECTED
    kept = Mixture([shards], where=["similarity > 0.28 and nsfw != 'NSFW' and license is null"])
    assert [kept.key(row) for row in range(len(kept))] == ["k0"]
    assert main(["verify", str(shards), "--workers", "1"]) == 0


def test_metadata_stays_with_rows_that_are_merged_or_split(shards, tmp_path):
    assert main(["merge", str(shards), "--out", str(tmp_path / "merged")]) == 0
    assert metadata_of(tmp_path / "merged") == EXPECTED
    assert main(["split", str(shards), "--split", "a=1", "--out", str(tmp_path / "split")]) == 0
    assert metadata_of(tmp_path / "split" / "a") == EXPECTED


def test_statistics_cover_the_rows_that_meet_the_condition(shards, capsys):
    assert main(["stats", str(shards), "--json", "--where", "similarity < 0.5"]) == 0
    statistics = json.loads(capsys.readouterr().out)
    assert (statistics["kept"], statistics["rows"]) == (2, 4)
    assert statistics["distributions"]["width"]["max"] == 22
    assert statistics["columns"]["similarity"] == "double" and statistics["columns"]["nsfw"] == "string"
    assert main(["stats", str(shards), "--where", "similarty < 0.5"]) == 1
    assert "similarty" in capsys.readouterr().err


def test_verify_finds_changed_and_missing_metadata(shards, tmp_path, capsys):
    assert main(["merge", str(shards), "--out", str(tmp_path / "s")]) == 0
    path = tmp_path / "s" / "000000.meta.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main(["verify", str(tmp_path / "s"), "--workers", "1"]) == 1
    assert f"{path.name} has changed" in capsys.readouterr().err
    path.unlink()
    assert main(["verify", str(tmp_path / "s"), "--workers", "1"]) == 1
    assert f"{path.name} is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, None, 3], "int64", [1, None, 3]),
        ([1, 0.5], "double", [1.0, 0.5]),
        ([True, None], "bool", [True, None]),
        ([True, 1], "string", ["true", "1"]),
        ([1 << 70, 1], "string", [str(1 << 70), "1"]),
        ([10**400, 0.5], "string", [str(10**400), "0.5"]),
        ([{"a": 1}, "x", b"y"], "string", ['{"a": 1}', "x", None]),
        (["\ud800"], "string", ["?"]),
        ([date(2020, 1, 2), None], "string", ["2020-01-02", None]),
        ([Decimal("0.50")], "string", ["0.50"]),
        ([None], "null", [None]),
    ],
)
def test_a_column_takes_the_one_type_that_holds_its_values(values, kind, expected):
    assert (str(column(values).type), column(values).to_pylist()) == (kind, expected)


def test_dates_and_decimals_split_rows_and_meet_conditions(tmp_path, capsys):
    columns = {
        "image": [photo(n) for n in range(4)],
        "caption": [f"day {n}" for n in range(4)],
        "day": [date(2020, 1, 1 + n % 2) for n in range(4)],
        "price": [Decimal(n) / 2 for n in range(4)],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    split = ["--split", "2020-01-01,2020-01-02", "--split-by", "day", "--workers", "1"]
    assert main(["shard", "hf", str(tmp_path / "a.parquet"), *split, "--out", str(tmp_path / "s")]) == 0
    assert [row["captions"] for row in read_rows(tmp_path / "s/2020-01-02")] == [["day 1"], ["day 3"]]
    capsys.readouterr()
    where = "day = '2020-01-02' and price > 1"
    assert main(["stats", str(tmp_path / "s/2020-01-02"), "--json", "--where", where]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 1


def test_parts_of_a_column_are_joined_in_a_type_that_holds_them_all():
    assert joined([column([1]), column([None]), column([0.5])]).to_pylist() == [1.0, None, 0.5]
    assert joined([column([1]), column(["a"]), column([True])]).to_pylist() == ["1", "a", "true"]
    assert joined([column([1.0, 1e-7]), column(["a", 1.0])]).to_pylist() == ["1.0", "1e-07", "a", "1.0"]
    assert joined([column([2**60 + 1]), column([0.5])]).to_pylist() == [float(2**60), 0.5]


def test_free_form_keys_give_a_bounded_number_of_columns():
    class Row:
        key, source, width, height, captions = "k", "", 1, 1, ["a"]

        def __init__(self, number):
            self.meta = {f"free {number} {n}": n for n in range(50)}

    columns = MetaColumns("caption")
    for start in range(0, 40, 4):
        columns.add([Row(number) for number in range(start, start + 4)])
    assert 100 < len(columns._columns) <= 256
    assert {sum(map(len, parts)) for parts in columns._columns.values()} == {40}
