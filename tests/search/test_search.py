"""What is found in an index, against comparing every image of the corpus by itself."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.__main__ import main as data_tools
from mvlm.__main__ import main
from mvlm.data.images.decode import load_image
from mvlm.data.shards.schema import read_manifest
from mvlm.search import find, folder
from mvlm.search.build import build_index

CPU = torch.device("cpu")
SENTENCE = "red circle top left"


@pytest.fixture(scope="module")
@torch.no_grad()
def every_feature(loaded, dataset):
    model = loaded.model
    return torch.cat([model.project_image(model.encode_image(dataset.images([row]))) for row in range(len(dataset))])


@torch.no_grad()
def read(loaded, dataset, sentence):
    """The feature of a sentence."""
    return loaded.model.project_text(loaded.model.encode_text(*dataset.tokens.batch([sentence])))[0]


@torch.no_grad()
def match(loaded, dataset, sentence, row):
    """The probability that a sentence and an image match."""
    text, valid = dataset.tokens.batch([sentence])
    words, image = loaded.model.encode_text(text, valid), loaded.model.encode_image(dataset.images([row]))
    return float(loaded.model.match(image, words, valid)[0].softmax(-1)[1])


@pytest.mark.parametrize("sentence", [SENTENCE, "a yellow star", "x"])
def test_the_nearest_images_are_those_of_comparing_all(loaded, dataset, every_feature, index, trained, found, sentence):
    similarity = (every_feature @ read(loaded, dataset, sentence)).numpy()
    answers = found(index, "--checkpoint", trained, "--text", sentence, "--top", 20, "--rerank", 0)
    scores = [each["similarity"] for each in answers]
    np.testing.assert_allclose(scores, np.sort(similarity)[::-1][:20], atol=2e-6)
    assert len({each["image"] for each in answers}) == 20
    for each in answers:
        assert each["similarity"] == pytest.approx(similarity[each["image"]], abs=2e-6)
        assert each["match"] is None
        row = dataset.mixture.row(each["image"])
        assert (each["shard"], each["row"]) == dataset.mixture.position(each["image"])
        assert (each["key"], each["caption"]) == (row.key, row.captions[0])


def test_the_first_answers_are_re_ranked_by_matching(loaded, dataset, every_feature, index, trained, found):
    similarity = (every_feature @ read(loaded, dataset, SENTENCE)).numpy()
    answers = found(index, "--checkpoint", trained, "--text", SENTENCE, "--top", 40, "--rerank", 32)
    first, rest = answers[:32], answers[32:]
    shares = [each["match"] for each in first]
    assert all(each["match"] is None for each in rest)
    temperature = loaded.model.temperature().item()
    scores = [np.log(each["match"] / (1 - each["match"])) + each["similarity"] / temperature for each in first]
    assert scores == sorted(scores, reverse=True)
    assert shares != sorted(shares, reverse=True)  # the order would differ by ITM alone
    alone = [match(loaded, dataset, SENTENCE, each["image"]) for each in first]
    np.testing.assert_allclose(shares, alone, atol=1e-5)
    together = sorted((each["similarity"] for each in first), reverse=True)
    np.testing.assert_allclose(together, np.sort(similarity)[::-1][:32], atol=2e-6)


def test_a_picture_finds_itself_first(dataset, every_feature, index, trained, found, tmp_path, capsys):
    row = 7
    load_image(dataset.mixture.row(row).image).save(tmp_path / "asked.png")
    words = ["--checkpoint", trained, "--image", tmp_path / "asked.png", "--top", 3, "--out", tmp_path / "drawn"]
    answers = found(index, *words)
    similarity = (every_feature @ every_feature[row]).numpy()
    assert answers[0]["similarity"] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose([each["similarity"] for each in answers], np.sort(similarity)[::-1][:3], atol=2e-6)
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert len(drawn) == 3
    shown, kept = Image.open(drawn[1]), load_image(dataset.mixture.row(answers[1]["image"]).image)
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(kept))
    assert f"row {answers[0]['row']} (key" in capsys.readouterr().out


def test_graph_search_in_many_small_parts_finds_the_same(loaded, scenes, every_feature, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "PART", 50)
    monkeypatch.setattr(find, "EXACT", 0)
    build_index(loaded, [str(scenes / "eval"), str(scenes / "train")], tmp_path / "index", CPU)
    index = find.ImageIndex(tmp_path / "index", loaded)
    assert [file.rows for file in index.contents.vectors] == [50] * 6
    for query in every_feature[::60]:
        similarity = (every_feature @ query).numpy()
        scores = [each.similarity for each in index.nearest(query, 20)]
        np.testing.assert_allclose(scores, np.sort(similarity)[::-1][:20], atol=2e-6)


def test_equal_images_are_found_in_the_order_of_the_index_whatever_the_number_of_answers(loaded, index, tmp_path):
    """Otherwise a page that asks for the next answers would repeat some and omit others."""
    copy = shutil.copytree(index, tmp_path / "index")
    described = json.loads((copy / "index.json").read_text())
    rows, width = described["rows"], described["width"]
    feature_NE = np.eye(width, dtype=np.float32)[[1] * 3 + [0] * (rows - 3)]
    described["vectors"] = [asdict(folder.write_vectors(copy, 0, [feature_NE], width))]
    (copy / "index.json").write_text(json.dumps(described))
    equal = find.ImageIndex(copy, loaded)
    for count in (1, 5, rows // 2, rows - 3, rows):
        found = [each.image for each in equal.nearest(torch.eye(width)[0], count)]
        assert found == [*range(3, rows), 0, 1, 2][:count]


def test_more_answers_than_images_are_all_images(index, trained, found):
    answers = found(index, "--checkpoint", trained, "--text", SENTENCE, "--top", 1000)
    assert sorted(each["image"] for each in answers) == list(range(300))


def test_captions_count_as_much_as_images(loaded, dataset, every_feature, trained, found, scenes, tmp_path, capsys):
    index = tmp_path / "index"
    words = [scenes / "eval", scenes / "train", "--checkpoint", trained, "--out", index, "--captions"]
    assert main(["index", *map(str, words)]) == 0, capsys.readouterr().err
    captions = [dataset.mixture.row(row).captions for row in range(len(dataset))]
    own = torch.stack([torch.stack([read(loaded, dataset, caption) for caption in each]).mean(0) for each in captions])
    both = torch.nn.functional.normalize(every_feature + own, dim=-1)
    similarity = (both @ read(loaded, dataset, SENTENCE)).numpy()
    answers = found(index, "--checkpoint", trained, "--text", SENTENCE, "--top", 20, "--rerank", 0)
    np.testing.assert_allclose([each["similarity"] for each in answers], np.sort(similarity)[::-1][:20], atol=2e-6)


def test_a_long_caption_is_cut_where_it_is_printed_and_nowhere_else(trained, found, tmp_path, capsys):
    caption = "a word that " * 800 + "ends"
    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "in/a.png")
    (tmp_path / "in/captions.jsonl").write_text(json.dumps({"id": "a", "image": "a.png", "caption": caption}))
    assert data_tools(["shard", "folder", str(tmp_path / "in"), "--out", str(tmp_path / "s"), "--workers", "1"]) == 0
    assert main(["index", str(tmp_path / "s"), "--checkpoint", str(trained), "--out", str(tmp_path / "index")]) == 0
    capsys.readouterr()
    (answer,) = found(tmp_path / "index", "--checkpoint", trained, "--text", SENTENCE)
    assert answer["caption"] == caption
    assert f"  {caption[:200]} …\n" in capsys.readouterr().out


def test_an_index_is_replaced_by_the_next(loaded, scenes, tmp_path):
    for part in ("eval", "train"):
        rows = read_manifest(scenes / part).rows
        assert build_index(loaded, [str(scenes / part)], tmp_path / "index", CPU) == rows
        assert len(find.ImageIndex(tmp_path / "index", loaded)) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_truncated_sentence_causes_a_warning(index, trained, found, capsys):
    found(index, "--checkpoint", trained, "--text", SENTENCE * 20)
    assert " tokens of a text: 1 of 1 are longer, up to" in capsys.readouterr().err
    found(index, "--checkpoint", trained, "--text", SENTENCE)
    assert "are longer" not in capsys.readouterr().err
