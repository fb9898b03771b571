"""The extension and Python read the same values, checksums and faults from any bytes."""

import random

import pytest
from made_shards import make_rows, write_shards

from data_tools.__main__ import main as data_tools
from data_tools.row_index import add_indexes
from mvlm.data.shards import plain_rows
from mvlm.data.shards.corpus import Corpus
from mvlm.data.shards.schema import read_manifest

native = pytest.importorskip("mvlm.data.shards._rows", reason="installing mvlm builds it where there is a C compiler")


@pytest.fixture(scope="module", params=["caption", "vqa", "pairs", "entailment", "foils"])
def shard(request, tmp_path_factory):
    """A shard's bytes and index: the arguments of both readers except for the row."""
    place = tmp_path_factory.mktemp("rows") / "s"
    if request.param == "caption":
        write_shards(place, make_rows(40), 40)
        add_indexes(place)
    else:
        assert data_tools(["synth", "--task", request.param, "--count", "12", "--out", str(place)]) == 0
    opened = Corpus(place, task=read_manifest(place).task)._open_shard(0)
    rows = opened.rows
    return bytes(rows._data), rows._starts, rows._buffers, rows._layout.kinds, rows._crc32


def outcome(act, *arguments):
    try:
        return act(*arguments)
    except UnicodeDecodeError:
        return "no UTF-8"
    except ValueError as error:
        return str(error)


def test_both_read_the_same_rows(shard):
    data, starts, buffers, kinds, crc32s = shard
    for number in range(starts[-1]):
        found = native.read_row(memoryview(data), starts, buffers, kinds, number, crc32s)
        assert found == plain_rows.read_row(memoryview(data), starts, buffers, kinds, number, crc32s)
        crc32 = native.row_crc32(memoryview(data), starts, buffers, kinds, number)
        assert crc32 == plain_rows.row_crc32(memoryview(data), starts, buffers, kinds, number) == crc32s[number]
    with pytest.raises(ValueError, match="no such row"):
        native.read_row(memoryview(data), starts, buffers, kinds, starts[-1], crc32s)


def test_both_find_the_same_faults(shard):
    """Bits of offsets, texts and numbers flip, and the shard is cut."""
    data, starts, buffers, kinds, crc32s = shard
    dice, wrong = random.Random(5), 0
    spans = list(zip(buffers[::2], buffers[1::2], strict=True))
    for _ in range(400):
        changed = bytearray(data)
        first, length = dice.choice([span for span in spans if span[1]])
        changed[first + dice.randrange(min(length, 200))] ^= 1 << dice.randrange(8)
        view = memoryview(changed)[: dice.choice((len(data), len(data), first + 2))]
        number = dice.randrange(starts[-1])
        for checked in (crc32s, None):
            arguments = view, starts, buffers, kinds, number, checked
            found, plain = (outcome(reader, *arguments) for reader in (native.read_row, plain_rows.read_row))
            assert found == plain
            wrong += isinstance(found, str)
    assert wrong > 40
