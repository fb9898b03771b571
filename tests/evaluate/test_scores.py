"""Scores of every row: correct, independent of how the work is divided, and available to conditions."""

import copy
import hashlib
import shutil
import tarfile

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from data_tools.__main__ import main as data_tools
from mvlm.__main__ import main
from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.schema import read_manifest
from mvlm.errors import UserError
from mvlm.evaluate import measured, memory
from mvlm.evaluate.masked_words import RandomWords
from mvlm.evaluate.matching import match_pairs
from mvlm.evaluate.memory import Tokens
from mvlm.evaluate.reconstruction import _pixel_scores, _word_sums
from mvlm.evaluate.retrieval import SearchSettings, image_features, text_features
from mvlm.evaluate.score_corpus import parse_part, score_part
from mvlm.evaluate.scores import NUMBERS, Scorer
from mvlm.evaluate.settings import Settings, captions_of
from mvlm.pretrained.runs import Loaded
from tests.evaluate.tiny import CONFIG, make_model, make_tokenizer
from tests.tars import add_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return Loaded(make_model(), folder, CONFIG.blueprint, CONFIG.data, CONFIG.eval, step=7, fingerprint="f00")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus") / "s"
    assert data_tools(["synth", "--task", "caption", "--count", "20", "--shard-mb", "0.012", "--out", str(out)]) == 0
    assert len(read_manifest(out).shards) > 2
    return out


@pytest.fixture(scope="module")
def scored(corpus, loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored") / "s"
    shutil.copytree(corpus, folder)
    assert score_part(Scorer(loaded, 3, CPU), folder)[0] == 0
    return folder


def table(folder, name, of="scores"):
    shards = read_manifest(folder).shards
    return [value for shard in shards for value in pq.read_table(folder / shard.table(of).file)[name].to_pylist()]


def rows_of(folder, loaded, limit=0):
    tokenizer, config = load_tokenizer(str(loaded.tokenizer_folder)), CONFIG
    return EvalDataset(Mixture([folder]), tokenizer, config.data.text_length, config.model.image_size, limit)


def test_scores_are_those_of_retrieval(scored, loaded):
    dataset = rows_of(scored, loaded)
    with torch.no_grad():
        image_BE = image_features(loaded.model, dataset, 20, CPU)
        similarity = image_BE @ text_features(loaded.model, dataset, 20, CPU).T
        captions = len(dataset.captions)
        pairs = dataset.owner * captions + np.arange(captions)
        sizes = memory.sizes(1.0, 20, len(dataset), captions, Tokens.of(loaded.model, dataset.tokens.length))
        odds = match_pairs(loaded.model, dataset, pairs, sizes, CPU).astype(np.float64)
    cosines = similarity.double().numpy()[dataset.owner, np.arange(captions)]
    words = [len(text.split()) for text in dataset.captions]
    wanted_of = {"itc_similarity": cosines, "itm_probability": 1 / (1 + np.exp(-odds)), "caption_words": words}
    for name, of_captions in wanted_of.items():
        wanted = [np.mean(np.array(of_captions)[dataset.owner == row]) for row in range(len(dataset))]
        np.testing.assert_allclose(table(scored, name), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(table(scored, "embedding", "embeddings"), image_BE.numpy(), atol=1e-3)
    if "language" in pq.read_schema(scored / "000000.scores.parquet").names:
        assert set(table(scored, "language")) == {"en"}


def test_losses_are_those_of_reconstruction_with_the_right_pair(scored, loaded):
    """In the first shard rows have the same numbers as in evaluation, and therefore the same masks."""
    first = read_manifest(scored).shards.rows[0]
    dataset, rows = rows_of(scored, loaded, first), np.arange(first)
    assert len(dataset.captions) == first > 2
    with torch.no_grad():
        text = RandomWords(dataset, loaded.model.objectives, loaded.model.seed).items(rows)
        _, loss_B, count_B = _word_sums(loaded.model, text, (dataset.images(rows.tolist()),), CPU).numpy().T
        sums = _pixel_scores(loaded.model, dataset, np.roll(rows, 1), first, CPU)
    np.testing.assert_allclose(table(scored, "text_loss")[:first], loss_B / count_B, rtol=1e-4)
    np.testing.assert_allclose(table(scored, "image_loss")[:first], sums[:, 0] / sums[:, -1], rtol=1e-4)


def test_a_corpus_at_a_url_gets_the_same_tables(corpus, scored, loaded, tmp_path):
    files, cache = fsspec.filesystem("memory"), Cache(str(tmp_path / "cache"))
    files.put(str(corpus), "/scored/s", recursive=True)
    try:
        count = len(read_manifest(corpus).shards)
        assert score_part(Scorer(loaded, 3, CPU), "memory://scored/s", 0, 2, cache=cache) == (count // 2, count)
        assert score_part(Scorer(loaded, 3, CPU), "memory://scored/s", 1, 2, cache=cache) == (0, count)
        files.get("/scored/s/", str(tmp_path / "back"), recursive=True)
    finally:
        files.rm("/scored", recursive=True)
    assert hashes(tmp_path / "back") == hashes(scored)


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_parts_give_the_same_bytes_and_are_not_computed_twice(corpus, scored, loaded, tmp_path):
    shutil.copytree(corpus, tmp_path / "s")
    count = len(read_manifest(corpus).shards)
    assert score_part(Scorer(loaded, 3, CPU), tmp_path / "s", 1, 2) == (count - count // 2, count)
    assert not read_manifest(tmp_path / "s").shards[0].table("scores")
    done: list[int] = []
    assert score_part(Scorer(loaded, 3, CPU), tmp_path / "s", 0, 1, done.append) == (0, count)
    assert sum(done) == sum(read_manifest(corpus).shards.rows[::2])
    assert hashes(tmp_path / "s") == hashes(scored)
    assert {shard.table("embeddings").rows for shard in read_manifest(scored).shards} and not list(scored.glob(".*"))
    done.clear()
    score_part(Scorer(loaded, 3, CPU), tmp_path / "s", 0, 1, done.append)
    assert done == []
    assert data_tools(["verify", str(tmp_path / "s"), "--workers", "1"]) == 0


def test_scores_of_tars_read_in_place_are_stored_beside_their_index(corpus, loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/a.tar", "w") as tar:
        for row in map(Mixture([corpus]).row, range(6)):
            for extension, content in (("png", bytes(row.image)), ("txt", row.captions[0].encode())):
                add_file(tar, f"{row.key}.{extension}", content)
    for place in (tmp_path / "tars/a.tar", f"{tmp_path}/tars/*.tar"):
        assert score_part(Scorer(loaded, 3, CPU), place) == (0, 1)
        assert len(Mixture([place], where=["caption_words > 0"])) == 6
    assert [path.name for path in (tmp_path / "tars").iterdir()] == ["a.tar"]


def test_conditions_may_combine_scores_and_metadata(scored):
    middle = float(np.median(table(scored, "itc_similarity")))
    kept = Mixture([scored], where=[f"itc_similarity > {middle!r} and width > 0 and caption_words >= 1"])
    assert len(kept) == sum(value > middle for value in table(scored, "itc_similarity"))


def test_new_scores_take_precedence_over_those_copied_with_the_rows(scored, loaded, tmp_path):
    """Splitting copies scores into the metadata; another model's scores must win over these."""
    assert data_tools(["split", str(scored), "--split", "a=0.5,b=0.5", "--out", str(tmp_path / "s")]) == 0
    part = tmp_path / "s/a"
    columns = pq.read_schema(part / "000000.meta.parquet").names
    assert set(NUMBERS) <= set(columns) and "embedding" not in columns
    opposite = copy.deepcopy(loaded)
    with torch.no_grad():
        for weight in opposite.model.text_projection.parameters():
            weight.neg_()
    score_part(Scorer(opposite, 3, CPU), part)
    new = table(part, "itc_similarity")
    assert not np.allclose(new, table(part, "itc_similarity", "meta"))
    middle = float(np.median(new))
    assert len(Mixture([part], where=[f"itc_similarity > {middle!r}"])) == sum(value > middle for value in new)


def test_evaluation_takes_only_rows_that_meet_a_condition(scored, loaded, capsys):
    middle = float(np.median(table(scored, "itc_similarity")))
    asked = Settings((str(scored),), 0, SearchSettings(4, 0, 1.0), where=f"itc_similarity > {middle!r}")
    wanted = [value > middle for value in table(scored, "itc_similarity")]
    mixture, whole = captions_of(loaded, asked).mixture, Mixture([scored])
    assert [mixture.key(row) for row in range(len(mixture))] == [whole.key(row) for row in np.flatnonzero(wanted)]
    with pytest.raises(SystemExit):  # its rows come in pairs
        main(["evaluate", "foils", "--checkpoint", "nowhere", "--data", str(scored), "--where", "width > 1"])
    assert "--where" in capsys.readouterr().err


def test_rows_that_were_taken_down_have_no_scores(corpus, loaded, tmp_path):
    shutil.copytree(corpus, tmp_path / "s")
    (tmp_path / "list").write_text(Mixture([corpus]).key(4))
    assert data_tools(["takedown", str(tmp_path / "s"), "--list", str(tmp_path / "list")]) == 0
    score_part(Scorer(loaded, 3, CPU), tmp_path / "s")
    for name, of in (*((name, "scores") for name in NUMBERS), ("embedding", "embeddings")):
        assert [row for row, value in enumerate(table(tmp_path / "s", name, of)) if value is None] == [4]


@pytest.mark.parametrize("text", ["0/1", "2/1", "-1/2", "a/2", "3", "²/3"])
def test_an_impossible_part_is_refused(text):
    assert (parse_part("1/1"), parse_part("8/8")) == ((0, 1), (7, 8))
    with pytest.raises(UserError, match="--part"):
        parse_part(text)


def test_a_corpus_given_twice_is_refused(scenes, trained, tmp_path, capsys):
    """Each row would be its own near-duplicate, or count twice."""
    shards = str(scenes / "eval")
    for words in (
        ["score", shards, f"{shards}/", "--clusters", "2"],
        ["evaluate", "retrieval", "--data", shards, shards],
    ):
        assert main([*words, "--checkpoint", str(trained)]) == 1
        assert "names a corpus twice: name each once" in capsys.readouterr().err
    assert main(["average", str(trained), "--out", str(tmp_path / "soup"), "--data", shards, shards]) == 1
    assert "names a corpus twice" in capsys.readouterr().err and not (tmp_path / "soup").exists()


@pytest.mark.parametrize(("task", "option"), [("retrieval", "--json"), ("vqa", "--predictions")])
def test_a_folder_as_the_output_file_is_refused_before_anything_is_measured(
    task, option, scenes, trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(measured, "evaluate_checkpoint", lambda *_, **__: pytest.fail("measured anyway"))
    words = ["--checkpoint", str(trained), "--data", str(scenes / "eval"), option, str(tmp_path)]
    assert main(["evaluate", task, *words]) == 1
    assert f"{tmp_path} is a folder: give {option} a file in it." in capsys.readouterr().err
