"""Conditions on metadata compared with SQLite, and selected rows compared with shards of only those rows."""

import sqlite3
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from made_shards import make_rows, write_shards
from made_tables import add_tables
from test_loader import GLOBAL, stream

from mvlm.config.schema import Data
from mvlm.data.loading.sampler import make_sampler, order_of
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.shards.bits import BLOCK, Bits
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.schema import MANIFEST, read_manifest
from mvlm.data.shards.selection import select
from mvlm.data.shards.where import MOST_NESTED, parse
from mvlm.errors import UserError
from tests.conftest import pair_args

ROWS, SHARD = 60, 7
TEXT_X, TEXT_ITS = "'x'", "'it''s'"
ORDERS = [
    order_of(Data(shuffle="global")),
    order_of(Data(shuffle="blocks", shuffle_block=4, shuffle_window=2)),
    order_of(Data(shuffle_shards=2)),
]


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, 5 * BLOCK + 3])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.7, 1.0])
def test_rank_and_select_match_a_list_of_the_members(size, share):
    rng = np.random.default_rng(size)
    member = rng.random(size) < share
    bits = Bits(np.split(member, np.sort(rng.integers(0, size + 1, 4))))
    members = np.flatnonzero(member).tolist()
    assert (bits.size, bits.count) == (size, len(members))
    assert [bits.select(number) for number in range(bits.count)] == members
    assert [bits.rank(bound) for bound in range(size + 1)] == [0, *np.cumsum(member).tolist()]
    assert (bits.between(size // 3, size) == member[size // 3 :]).all()
    assert [number in bits for number in range(size)] == member.tolist()
    for beyond in (-1, bits.count):
        with pytest.raises(IndexError):
            bits.select(beyond)


def test_a_row_takes_little_more_than_a_bit():
    bits = Bits([np.ones(1 << 20, bool)])
    assert (bits._bytes.nbytes + bits._before.nbytes) * 8 / bits.size < 1.13


def test_conditions_select_the_same_rows_as_in_sql():
    rng = np.random.default_rng(0)
    table = {
        "a": [None if rng.random() < 0.2 else float(rng.integers(4)) / 2 for _ in range(200)],
        "b": [None if rng.random() < 0.2 else float(rng.integers(4)) for _ in range(200)],
        "s": [None if rng.random() < 0.2 else str(rng.choice(["x", "it's", ""])) for _ in range(200)],
    }
    base = sqlite3.connect(":memory:")
    base.execute("create table t (n integer, a real, b real, s text)")
    base.executemany("insert into t values (?, ?, ?, ?)", zip(range(200), *table.values(), strict=True))

    def condition(depth):
        """A random condition, nested at most that deep."""
        kind = rng.integers(6) if depth else rng.integers(3, 6)
        if kind < 2:
            parts = [condition(depth - 1) for _ in range(rng.integers(2, 4))]
            return (" and " if kind else " OR ").join(parts)
        if kind == 2:
            return f"{rng.choice(['', 'not '])}({condition(depth - 1)})"
        left = str(rng.choice(["a", "b", "a + b * 2", "-a", "(a - b) / 2", "1.5"]))
        if kind == 3:
            return (
                f"{left} {rng.choice(['<', '<=', '=', '<>', '!=', '>', '>='])} {rng.choice(['b', '0.5', '1e0', '-1'])}"
            )
        if kind == 4:
            return str(
                rng.choice([f"{left} is null", "s is not null", f"not {left} in (0, 1.5)", "s not in ('x', '')"])
            )
        return f"s {rng.choice(['=', '!='])} {rng.choice(['s', TEXT_X, TEXT_ITS])}"

    arrow = pa.table({"a": table["a"], "b": table["b"], "s": table["s"]})
    kept = set()
    for _ in range(60):
        text = condition(3)
        wanted = [n for (n,) in base.execute(f"select n from t where {text} order by n")]
        found = pa.table({"n": range(200)} | dict(zip("abs", arrow.columns, strict=True)))
        assert found.filter(parse(text).expression(found.schema))["n"].to_pylist() == wanted, text
        kept.add(len(wanted))
    assert len(kept) > 15


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("number < 5", [0, 1]),  # texts that are numbers
        ("number = '12'", [2]),
        ("number < 99999999999999999999", [0, 1, 2]),  # more than 64 bits
        ("n / n = 1", [1, 2, 3, 4]),
        ("1 / 0 is null", [0, 1, 2, 3, 4]),
        ("number is null", [4]),
        ("similarity > 0.3", [0]),  # NaN is missing
        ("similarity is null", [2, 3]),
        ("ok", [0, 3]),
        ("not ok and true", [1, 2]),
        ("`two words` != 1", [0]),
        ("nothing is null and nothing = 3 or key = 'c'", [2]),
    ],
)
def test_values_of_different_types_are_compared_as_documented(text, kept):
    table = pa.table(
        {
            "number": ["1", " 4.5", "12", "many", None],
            "similarity": [0.4, 0.1, float("nan"), None, 0.3],
            "ok": [True, False, False, True, None],
            "two words": [2, 1, None, 1, 1],
            "key": list("abcde"),
            "n": range(5),
        }
    )
    assert table.filter(parse(text).expression(table.schema))["n"].to_pylist() == kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("similarity >", "at its end (character 13)"),
        ("similarity > 0.3 0.4", "'and', 'or' or its end is expected at '0.4' (character 18)"),
        ("similarity in (other)", "must be numbers or 'texts'"),
        ("nsfw = 'open", "(character 8) is not a part of a condition"),
        ("__import__('os')", "is expected at"),
        ("3x > 1", "not a part of a condition"),
        ("(" * (MOST_NESTED + 1) + "a = 1", "are nested in each other"),
    ],
)
def test_an_invalid_condition_is_refused_in_one_sentence(text, message):
    with pytest.raises(UserError) as error:
        parse(text)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def some_rows():
    return make_rows(ROWS, 3)


@pytest.fixture(scope="module")
def similarity():
    return np.random.default_rng(5).random(ROWS).round(3)


@pytest.fixture(scope="module")
def scored(some_rows, similarity, tmp_path_factory):
    folder = write_shards(tmp_path_factory.mktemp("scored") / "s", some_rows, SHARD, 3)
    return add_tables(
        folder, "scores", [{"similarity": part} for part in np.split(similarity, range(SHARD, ROWS, SHARD))]
    )


@pytest.fixture(scope="module")
def kept_alone(some_rows, similarity, tmp_path_factory):
    """Shards of only the rows above 0.4, with the same borders; none are left of one shard."""
    kept = similarity > 0.4
    kept[SHARD : 2 * SHARD] = False
    folder, parts = tmp_path_factory.mktemp("alone"), []
    for first in range(0, ROWS, SHARD):
        part = [some_rows[number] for number in range(first, min(first + SHARD, ROWS)) if kept[number]]
        if part:
            parts.append(write_shards(folder / str(first), part))
    return parts


CONDITION = f"similarity > 0.4 and not (key >= 'k{SHARD:05d}' and key < 'k{2 * SHARD:05d}')"


@pytest.mark.parametrize(("order", "pairs"), [(ORDERS[0], False), (ORDERS[0], True), (ORDERS[1], False)], ids=str)
def test_the_order_is_that_of_shards_with_only_the_selected_rows(scored, kept_alone, order, pairs):
    selected, alone = Mixture([scored], where=[CONDITION], pairs=pairs), Mixture(kept_alone, pairs=pairs)

    def seen(mixture):
        drawn = make_sampler(mixture, 3, [order])(np.arange(2 * mixture.per_epoch))[0].tolist()
        return [(mixture.key(row), caption) for row, caption in map(mixture.numbers.visit, drawn)]

    assert (len(selected), selected.per_epoch) == (len(alone), alone.per_epoch)
    assert seen(selected) == seen(alone)
    kept = [n for n in selected.numbers.counts_by_shard()[0] if n]
    assert kept == [n for of in alone.numbers.counts_by_shard() for n in of]


@pytest.mark.parametrize("order", ORDERS[1:], ids=str)
def test_every_pair_of_the_selected_rows_is_drawn_once_an_epoch(scored, kept_alone, order):
    mixture, alone = Mixture([scored], where=[CONDITION], pairs=True), Mixture(kept_alone)
    drawn = make_sampler(mixture, 1, [order])(np.arange(mixture.per_epoch))[0].tolist()
    visits = [(mixture.key(row), caption) for row, caption in map(mixture.numbers.visit, drawn)]
    wanted = [(row.key, caption) for row in map(alone.row, range(len(alone))) for caption in range(len(row.captions))]
    assert sorted(visits) == sorted(wanted)
    assert mixture.position(len(mixture) - 1)[1] < SHARD  # rows are named by their place in the shard


def test_a_row_may_have_more_captions_than_16_bits_can_count(tmp_path):
    rows = make_rows(3)
    rows[0]["captions"] = [f"text {number}" for number in range((1 << 16) + 1)]
    folder = write_shards(tmp_path / "s", rows)
    mixture = Mixture([folder], where=["captions < 100"], pairs=True)
    visits = [(mixture.key(row), caption) for row, caption in map(mixture.numbers.visit, range(mixture.per_epoch))]
    assert visits == [(row["key"], caption) for row in rows[1:] for caption in range(len(row["captions"]))]


def test_each_corpus_has_its_own_condition_and_weight(scored, folder):
    both = Mixture([scored, folder], [0.5, 2.0], where=["similarity > 0.5", ""])
    kept = len(Mixture([scored], where=["similarity > 0.5"]))
    assert both.numbers.sizes == [kept, 130]
    assert both.per_epoch == round(kept / 2) + 260


def test_a_column_is_null_in_shards_that_lack_it(some_rows, tmp_path):
    folder = write_shards(tmp_path / "s", some_rows[:21], SHARD)
    add_tables(
        folder, "meta", [{"nsfw": ["a", "b", "a", None, "b", "a", "a"]}, None, {"score": range(7), "nsfw": range(7)}]
    )
    kept = {
        text: len(Mixture([folder], where=[text]))
        for text in ("nsfw = 'a'", "score is null", "nsfw is null", "nsfw < 3")
    }
    assert kept == {"nsfw = 'a'": 4, "score is null": 14, "nsfw is null": 8, "nsfw < 3": 3}
    with pytest.raises(
        UserError, match=r"'similarity': its columns are captions, height, key, nsfw, score, source, width"
    ):
        Mixture([folder], where=["similarity > 1"])
    with pytest.raises(UserError, match="keeps no row"):
        Mixture([folder], where=["score > 100"])


def test_a_damaged_table_is_named(some_rows, tmp_path):
    folder = write_shards(tmp_path / "s", some_rows[:7], SHARD)
    add_tables(folder, "meta", [{"score": np.random.default_rng(0).random(7)}])
    path = folder / "000000.meta.parquet"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"000000\.meta\.parquet cannot be read"):
        Mixture([folder], where=["score > 0"])


def test_tables_are_kept_in_the_manifest_and_do_not_change_the_fingerprint(scored, some_rows, tmp_path):
    plain = read_manifest(write_shards(tmp_path / "s", some_rows, SHARD, 3))
    manifest = read_manifest(scored)
    assert manifest.fingerprint == plain.fingerprint
    assert [shard.table("scores").file for shard in manifest.shards][-1] == "000008.scores.parquet"
    assert (scored / MANIFEST).read_text() == manifest.to_json()
    assert [replace(shard, tables=()) for shard in manifest.shards] == list(plain.shards)


def test_a_selection_is_identified_by_its_rows(scored):
    hashes = [
        Mixture([scored], where=[text]).selection
        for text in ("similarity > 0.4", "similarity>=0.4001", "true", "width > 30")
    ]
    assert Mixture([scored]).selection == "" and len(set(hashes)) == 3 and hashes[0] == hashes[1]


def test_samples_of_a_selection_show_only_its_rows(scored, tokenizer, config):
    dataset = PairDataset(Mixture([scored], where=[CONDITION], pairs=True), tokenizer, *pair_args(config), (4, 4))
    sampler = make_sampler(dataset.mixture, config.run.seed, ORDERS[:1])
    kept = {dataset.mixture.key(row) for row in range(len(dataset.mixture))}
    for position, number in enumerate(sampler(np.arange(10))[0].tolist()):
        assert dataset.mixture.key(dataset.sample(position, number).row) in kept


def test_a_selection_can_leave_out_given_rows(scored):
    kept = select(Mixture([scored]).corpora[0].location, "", without=[0, SHARD - 1, SHARD, ROWS - 1]).rows
    assert [row for row in range(ROWS) if row not in kept] == [0, SHARD - 1, SHARD, ROWS - 1]


def test_ranks_share_a_selection_and_resume_it(scored, tokenizer, config):
    """Its batches are the same on one, two and four ranks, and on two that resume the run of one."""
    mixture = Mixture([scored], where=["similarity > 0.4"], pairs=True)
    dataset = PairDataset(mixture, tokenizer, *pair_args(config), (4, 4))
    draws = make_sampler(mixture, config.run.seed, ORDERS[:1])
    alone = stream(dataset, draws)
    assert stream(dataset, draws, world=2) == stream(dataset, draws, world=4) == alone
    assert stream(dataset, draws, steps=1, start=2 * GLOBAL, world=2, micro_batch=2) == alone[2:3]
    assert alone != stream(PairDataset(Mixture([scored], pairs=True), tokenizer, *pair_args(config), (4, 4)), draws)
