"""What a source says of its records is kept beside the shards, whatever is done with these."""

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

SAID = [
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
        for number, said in enumerate(SAID):
            image = Image.fromarray(rng.integers(0, 256, (12, 20 + number, 3), np.uint8))
            content = {"png": encoded(image, "PNG"), "json": json.dumps({"caption": f"text {number}"} | said).encode()}
            for extension, data in content.items():
                add_file(tar, f"k{number}.{extension}", data)
    return path


@pytest.fixture(scope="module")
def shards(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "shards"
    assert main(["shard", "webdataset", str(source), "--workers", "1", "--out", str(out)]) == 0
    return out


WANTED = {
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


def said_in(folder):
    (shard,) = read_manifest(folder).shards
    table = pq.read_table(folder / shard.table("meta").file).to_pydict()
    assert "caption" not in table
    return {name: table[name] for name in WANTED}


def test_what_the_source_says_stands_beside_the_shard(shards):
    assert said_in(shards) == WANTED
    kept = Mixture([shards], where=["similarity > 0.28 and nsfw != 'NSFW' and license is null"])
    assert [kept.key(row) for row in range(len(kept))] == ["k0"]
    assert main(["verify", str(shards), "--workers", "1"]) == 0


def test_it_goes_where_the_rows_go(shards, tmp_path):
    assert main(["merge", str(shards), "--out", str(tmp_path / "merged")]) == 0
    assert said_in(tmp_path / "merged") == WANTED
    assert main(["split", str(shards), "--split", "a=1", "--out", str(tmp_path / "split")]) == 0
    assert said_in(tmp_path / "split" / "a") == WANTED


def test_statistics_are_of_the_rows_that_meet_a_condition(shards, capsys):
    assert main(["stats", str(shards), "--json", "--where", "similarity < 0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kept"], found["rows"], found["distributions"]["width"]["max"]) == (2, 4, 22)
    assert found["columns"]["similarity"] == "double" and found["columns"]["nsfw"] == "string"
    assert main(["stats", str(shards), "--where", "similarty < 0.5"]) == 1


def test_a_changed_table_is_a_problem(shards, tmp_path):
    assert main(["merge", str(shards), "--out", str(tmp_path / "s")]) == 0
    path = tmp_path / "s" / "000000.meta.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main(["verify", str(tmp_path / "s"), "--workers", "1"]) == 1
    path.unlink()
    assert main(["verify", str(tmp_path / "s"), "--workers", "1"]) == 1


@pytest.mark.parametrize(
    ("values", "kind", "wanted"),
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
def test_a_column_has_one_type(values, kind, wanted):
    assert (str(column(values).type), column(values).to_pylist()) == (kind, wanted)


def test_what_json_does_not_know_splits_rows_and_meets_conditions(tmp_path, capsys):
    columns = {"image": [photo(n) for n in range(4)], "caption": [f"day {n}" for n in range(4)]}
    days = [date(2020, 1, 1 + n % 2) for n in range(4)]
    pq.write_table(
        pa.table(columns | {"day": days, "price": [Decimal(n) / 2 for n in range(4)]}), tmp_path / "a.parquet"
    )
    split = ["--split", "2020-01-01,2020-01-02", "--split-by", "day", "--workers", "1"]
    assert main(["shard", "hf", str(tmp_path / "a.parquet"), *split, "--out", str(tmp_path / "s")]) == 0
    assert [row["captions"] for row in read_rows(tmp_path / "s/2020-01-02")] == [["day 1"], ["day 3"]]
    capsys.readouterr()
    where = "day = '2020-01-02' and price > 1"
    assert main(["stats", str(tmp_path / "s/2020-01-02"), "--json", "--where", where]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 1


def test_parts_of_a_column_are_joined_as_what_holds_both():
    assert joined([column([1]), column([None]), column([0.5])]).to_pylist() == [1.0, None, 0.5]
    assert joined([column([1]), column(["a"]), column([True])]).to_pylist() == ["1", "a", "true"]
    assert joined([column([1.0, 1e-7]), column(["a", 1.0])]).to_pylist() == ["1.0", "1e-07", "a", "1.0"]
    assert joined([column([2**60 + 1]), column([0.5])]).to_pylist() == [float(2**60), 0.5]


def test_a_source_of_free_keys_does_not_grow_without_bounds():
    class Row:
        key, source, width, height, captions = "k", "", 1, 1, ["a"]

        def __init__(self, number):
            self.meta = {f"free {number} {n}": n for n in range(50)}

    columns = MetaColumns("caption")
    for start in range(0, 40, 4):
        columns.add([Row(number) for number in range(start, start + 4)])
    assert 100 < len(columns._columns) <= 256
    assert {sum(map(len, parts)) for parts in columns._columns.values()} == {40}
