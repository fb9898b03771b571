"""Every mistake with an index is one sentence, and an unfinished index is not taken for one."""

import json
import shutil
import signal
import time

import pytest

from mvlm.__main__ import main
from mvlm.api.load import load
from mvlm.data.shards.schema import read_manifest
from mvlm.errors import UserError
from tests.ranks import Copy, mvlm


@pytest.fixture
def copy(index, tmp_path):
    return shutil.copytree(index, tmp_path / "index")


def search(index, run, *words):
    return ["search", index, "--checkpoint", run, *(words or ("--text", "a red circle"))]


def test_a_missing_index_is_refused(trained, tmp_path, mistake):
    assert "No index at" in mistake(*search(tmp_path / "nowhere", trained))


def test_a_search_without_a_query_is_wrong_usage(index, trained):
    with pytest.raises(SystemExit) as ended:
        main(["search", str(index), "--checkpoint", str(trained)])
    assert ended.value.code == 2


def test_a_search_for_no_answers_is_refused(index, trained, mistake):
    assert "--top is 0" in mistake(*search(index, trained, "--text", "x", "--top", "0"))


def test_an_empty_sentence_is_refused(index, trained, mistake):
    for text in ("", " \t"):
        assert "The sentence is empty: write what" in mistake(*search(index, trained, "--text", text))


def test_an_index_of_other_weights_is_refused(index, trained, mistake):
    first = trained / "checkpoints/step_00000000"
    assert "made with other weights, of step 12, and this checkpoint is of step 0" in mistake(*search(index, first))


def test_an_index_outlives_the_moments_of_its_checkpoint(index, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    for path in run.glob("checkpoints/*/moments-*"):
        path.unlink()
    assert main([str(word) for word in search(index, run)]) == 0


@pytest.mark.parametrize("file", ["vectors-00000.usearch", "rows.arrow"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(copy, trained, mistake, file, harm):
    path = copy / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(content if harm == "flip" else content[: len(content) // 2])
    assert f"{file} is damaged" in mistake(*search(copy, trained))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "mvlm index", "version": 9}'])
def test_an_unreadable_description_is_refused(copy, trained, mistake, content):
    (copy / "index.json").write_text(content)
    assert "index.json is damaged" in mistake(*search(copy, trained))


@pytest.mark.parametrize("file", ["vectors-00000.usearch", "/etc/passwd", "../x"])
def test_a_description_that_does_not_match_the_files_is_refused(copy, trained, mistake, file):
    described = json.loads((copy / "index.json").read_text())
    described["vectors"][0] |= {"file": file, "rows": 299}
    described["rows"] = 299
    (copy / "index.json").write_text(json.dumps(described))
    assert "is damaged" in mistake(*search(copy, trained))


@pytest.fixture
def moving(trained, scenes, tmp_path):
    """Shards that a test may change, and their index."""
    shards, index = shutil.copytree(scenes / "eval", tmp_path / "shards"), tmp_path / "index"
    assert main(["index", str(shards), "--checkpoint", str(trained), "--out", str(index)]) == 0
    return shards, index


def test_moved_shards_are_only_missed_by_re_ranking(moving, trained, tmp_path, mistake, found):
    shards, index = moving
    shards.rename(tmp_path / "elsewhere")
    assert "are not where they were indexed" in mistake(*search(index, trained))
    assert len(found(*search(index, trained)[1:], "--text", "x", "--rerank", 0)) == 5


def test_other_shards_at_the_same_place_are_refused(moving, trained, scenes, mistake):
    shards, index = moving
    shutil.rmtree(shards)
    shutil.copytree(scenes / "train", shards)
    assert f"{shards} has changed since {index} was made" in mistake(*search(index, trained))


def test_a_damaged_picture_is_named(moving, trained, mistake, tmp_path):
    shards, index = moving
    shard = shards / "000000.arrow"
    shard.write_bytes(shard.read_bytes().replace(b"IDAT", b"IDAU"))
    said = mistake(*search(index, trained, "--text", "x", "--rerank", "0", "--out", tmp_path / "out"))
    assert "000000.arrow row" in said and "its checksum differs" in said


def test_an_unsuitable_folder_as_the_output_is_refused(index, trained, scenes, mistake, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert ". is a folder: give --json a file in it" in mistake(*search(index, trained, "--text", "x", "--json", "."))
    assert ". exists and is not an index" in mistake("index", scenes / "eval", "--checkpoint", trained, "--out", ".")
    assert not list(tmp_path.iterdir())


def test_missing_shards_are_refused(trained, tmp_path, mistake):
    out = tmp_path / "index"
    assert "No shards at" in mistake("index", tmp_path / "nowhere", "--checkpoint", trained, "--out", out)
    assert list(tmp_path.iterdir()) == []


def test_shards_given_twice_are_refused(trained, scenes, tmp_path, mistake):
    """Every image would be found twice."""
    out, again = tmp_path / "index", scenes / "train" / ".." / "eval"
    said = mistake("index", scenes / "eval", again, "--checkpoint", trained, "--out", out)
    assert "names a corpus twice: name each once" in said and not out.exists()
    with pytest.raises(UserError, match="names a corpus twice"):
        load(trained).index([scenes / "eval", again], out)


def test_a_folder_that_is_not_an_index_is_left_alone(trained, scenes, tmp_path, mistake):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/precious").write_text("x")
    words = ["index", scenes / "eval", "--checkpoint", trained, "--out", tmp_path / "mine"]
    assert "is not an index" in mistake(*words)
    assert (tmp_path / "mine/precious").read_text() == "x"


def test_a_full_disk_leaves_no_index(mount_disk, trained, scenes, mistake):
    out = mount_disk("20k") / "index"
    assert "cannot be written" in mistake("index", scenes / "train", "--checkpoint", trained, "--out", out)
    assert not out.exists()


def test_a_killed_command_leaves_no_index_and_the_next_one_is_complete(trained, scenes, tmp_path, found, mistake):
    out = tmp_path / "index"
    corpora = [str(shutil.copytree(scenes / "train", tmp_path / f"train_{number}")) for number in range(40)]
    words = ["index", *corpora, "--checkpoint", str(trained), "--out", str(out)]
    child = Copy(mvlm, *words)
    while not any((tmp_path / ".index.partial").glob("shares/*")) and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert (tmp_path / ".index.partial").exists()
    assert "No index at" in mistake(*search(out, trained))
    assert main(["index", str(scenes / "eval"), "--checkpoint", str(trained), "--out", str(out)]) == 0
    rows = read_manifest(scenes / "eval").rows
    assert len(found(*search(out, trained)[1:], "--top", 100)) == rows
    assert not (tmp_path / ".index.partial").exists()
