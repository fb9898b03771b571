"""Scores of every row by a trained model: right, the same however the work is shared, and read by conditions."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from data_tools.__main__ import main as data_tools
from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.data.shards.corpus import Mixture
from mvlm.data.shards.schema import read_manifest
from mvlm.errors import UserError
from mvlm.evaluate import memory
from mvlm.evaluate.matching import match_pairs
from mvlm.evaluate.memory import Tokens
from mvlm.evaluate.retrieval import image_features, text_features
from mvlm.evaluate.scores import COLUMNS, Scorer, parse_part, score_part
from mvlm.pretrained.runs import Loaded
from tests.evaluate.tiny import CONFIG, make_model, make_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return Loaded(make_model(), folder, CONFIG, step=7, fingerprint="f00")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus") / "s"
    assert data_tools(["synth", "--task", "caption", "--count", "20", "--shard-mb", "0.002", "--out", str(out)]) == 0
    assert len(read_manifest(out).shards) > 2
    return out


@pytest.fixture(scope="module")
def scored(corpus, loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored") / "s"
    shutil.copytree(corpus, folder)
    assert score_part(Scorer(loaded, 3, CPU), folder)[0] == 0
    return folder


def table(folder, name):
    shards = read_manifest(folder).shards
    return [value for shard in shards for value in pq.read_table(folder / shard.table("scores").file)[name].to_pylist()]


def test_scores_are_those_of_retrieval(scored, loaded):
    tokenizer, config = load_tokenizer(str(loaded.tokenizer_folder)), CONFIG
    dataset = EvalDataset(Mixture([scored]), tokenizer, config.data.text_length, config.model.image_size)
    with torch.no_grad():
        similarity = image_features(loaded.model, dataset, 20, CPU) @ text_features(loaded.model, dataset, 20, CPU).T
        captions = len(dataset.captions)
        pairs = dataset.owner * captions + np.arange(captions)
        sizes = memory.sizes(1.0, 20, len(dataset), captions, Tokens.of(loaded.model, dataset.tokens.length))
        odds = match_pairs(loaded.model, dataset, pairs, sizes, CPU).astype(np.float64)
    cosines = similarity.double().numpy()[dataset.owner, np.arange(captions)]
    words = [len(text.split()) for text in dataset.captions]
    for name, of_captions in zip(COLUMNS, (cosines, 1 / (1 + np.exp(-odds)), words), strict=True):
        wanted = [np.mean(np.array(of_captions)[dataset.owner == row]) for row in range(len(dataset))]
        np.testing.assert_allclose(table(scored, name), wanted, rtol=1e-4, atol=1e-6)


def test_parts_give_the_same_bytes_and_are_not_done_twice(corpus, scored, loaded, tmp_path):
    shutil.copytree(corpus, tmp_path / "s")
    count = len(read_manifest(corpus).shards)
    assert score_part(Scorer(loaded, 3, CPU), tmp_path / "s", 1, 2) == (count - count // 2, count)
    assert not read_manifest(tmp_path / "s").shards[0].table("scores")
    done: list[int] = []
    assert score_part(Scorer(loaded, 3, CPU), tmp_path / "s", 0, 1, done.append) == (0, count)
    assert sum(done) == sum(read_manifest(corpus).shards.rows[::2])
    assert list(read_manifest(tmp_path / "s").shards) == list(read_manifest(scored).shards)
    done.clear()
    score_part(Scorer(loaded, 3, CPU), tmp_path / "s", 0, 1, done.append)
    assert done == []
    assert data_tools(["verify", str(tmp_path / "s"), "--workers", "1"]) == 0


def test_conditions_read_the_scores_beside_the_metadata(scored):
    middle = float(np.median(table(scored, "itc_similarity")))
    kept = Mixture([scored], where=[f"itc_similarity > {middle!r} and width > 0 and caption_words >= 1"])
    assert len(kept) == sum(value > middle for value in table(scored, "itc_similarity"))


def test_rows_that_were_taken_down_have_no_score(corpus, loaded, tmp_path):
    shutil.copytree(corpus, tmp_path / "s")
    (tmp_path / "list").write_text(Mixture([corpus]).key(4))
    assert data_tools(["takedown", str(tmp_path / "s"), "--list", str(tmp_path / "list")]) == 0
    score_part(Scorer(loaded, 3, CPU), tmp_path / "s")
    assert [row for row, value in enumerate(table(tmp_path / "s", "itc_similarity")) if value is None] == [4]


@pytest.mark.parametrize("text", ["0/1", "2/1", "-1/2", "a/2", "3"])
def test_a_part_that_is_none_is_refused(text):
    assert (parse_part("1/1"), parse_part("8/8")) == ((0, 1), (7, 8))
    with pytest.raises(UserError, match="--part"):
        parse_part(text)
