"""`mvlm evaluate` as a user calls it, on the same real run."""

import json

import pytest

from mvlm.__main__ import main


def evaluate(task, run, shards, *words):
    return main(["evaluate", task, "--checkpoint", str(run), "--data", str(shards), *map(str, words)])


def test_retrieval_prints_and_writes_the_same(trained, eval_shards, tmp_path, capsys):
    out = tmp_path / "results" / "retrieval.json"
    assert evaluate("retrieval", trained, eval_shards, "--json", out, "--rerank", 4, "--batch", 3) == 0
    printed, result = capsys.readouterr().out, json.loads(out.read_text())
    for direction in ("image_to_text", "text_to_image"):
        assert set(result[direction]) == {"itc", "reranked", "summed"}
        for recalls in result[direction].values():
            assert 0 <= recalls["r1"] <= recalls["r5"] <= recalls["r10"] <= 1
            assert f"{100 * recalls['r5']:.1f}" in printed
    assert (result["images"], result["captions"], result["step"], result["data"]) == (8, 12, 3, [str(eval_shards)])
    assert " ".join(result["protocol"].split()) in " ".join(printed.split())
    assert [path.name for path in out.parent.iterdir()] == ["retrieval.json"]


def test_reconstruction_takes_chosen_words_and_a_limit(trained, eval_shards, tmp_path):
    out = tmp_path / "reconstruction.json"
    drawn = ("--pictures", tmp_path / "drawn")
    assert (
        evaluate("reconstruction", trained, eval_shards, "--json", out, "--words", "red, dog", "--limit", 3, *drawn)
        == 0
    )
    assert len(list((tmp_path / "drawn").rglob("*.png"))) == 1
    result = json.loads(out.read_text())
    assert (result["images"], result["words"]) == (3, ["red", "dog"])
    assert set(result["pixel_l1"]) == {"right", "none", "wrong", "constant"}
    for key in ("word_accuracy", "word_loss"):
        assert set(result[key]) == {"right", "none", "wrong"}


def test_mistakes_are_one_sentence(trained, eval_shards, tmp_path, capsys):
    def mistake(*words):
        assert evaluate(*words) == 1
        message = capsys.readouterr().err
        assert message.count("\n") == 1, message
        return message

    assert "No checkpoint at" in mistake("retrieval", tmp_path, eval_shards)
    assert "No shards at" in mistake("retrieval", trained, tmp_path / "none")
    assert "purple" in mistake("reconstruction", trained, eval_shards, "--words", "purple")
    assert "evaluate on more" in mistake("reconstruction", trained, eval_shards, "--limit", 1)
    (tmp_path / "file").write_text("")
    assert "--json another place" in mistake("retrieval", trained, eval_shards, "--json", tmp_path / "file" / "x.json")


@pytest.mark.parametrize("words", [["--batch", "0"], ["--rerank", "-1"], ["--words", " , "], ["--limit", "x"]])
def test_wrong_usage_exits_with_2(trained, eval_shards, words):
    with pytest.raises(SystemExit) as stop:
        evaluate("reconstruction", trained, eval_shards, *words)
    assert stop.value.code == 2
