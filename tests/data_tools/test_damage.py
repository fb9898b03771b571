"""`verify` finds the damage that disks and networks do to a corpus; a full disk leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from made import read_rows, run, tree
from made_corpus import write_corpus

from data_tools.__main__ import main

ROOT = Path(__file__).parents[2]


def problems(corpus: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `verify` prints to stderr about a corpus in which it must find problems."""
    capsys.readouterr()
    assert main(["verify", str(corpus), "--workers", "1"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_json_lists_the_problems_of_each_corpus(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def verified(code: int) -> dict[str, list[str]]:
        capsys.readouterr()
        assert main(["verify", str(corpus), "--json", "--workers", "1"]) == code
        output = capsys.readouterr()
        assert output.err == ""
        return json.loads(output.out)

    assert verified(0) == {str(corpus): []}
    shard = sorted(corpus.glob("*.arrow"))[0]
    os.truncate(shard, shard.stat().st_size // 2)
    (found,) = verified(1).values()
    assert any(shard.name in problem for problem in found)


def test_a_sound_corpus_passes(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(corpus), "--workers", "2"]) == 0
    output = capsys.readouterr()
    assert "12 rows" in output.out
    assert output.err == ""


def test_a_truncated_shard_and_its_lost_rows_are_named(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, shard, *_ = json.loads((corpus / "manifest.json").read_text())["shards"]
    os.truncate(corpus / shard["file"], shard["bytes"] * 6 // 10)
    error = problems(corpus, capsys)
    assert shard["file"] in error
    first, last = before["rows"], before["rows"] + shard["rows"] - 1
    assert f"{shard['rows']} rows are lost, {first} to {last} of the corpus" in error
    assert error.count("\n") == 1


def test_a_flipped_bit_is_found_in_its_row(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = read_rows(corpus)[2]
    path = corpus / "000000.arrow"
    data = bytearray(path.read_bytes())
    data[data.index(row["image"]) + len(row["image"]) // 2] ^= 0x40
    path.write_bytes(data)
    error = problems(corpus, capsys)
    assert "its hash is not the manifest's" in error
    assert "row 2 (r2)" in error
    assert error.count("\n") == 2


def test_a_flipped_bit_anywhere_is_found_without_a_crash(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = corpus / "000000.arrow"
    whole = path.read_bytes()
    for offset in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x80]) + whole[offset + 1 :])
        assert "000000.arrow" in problems(corpus, capsys)


def test_missing_and_stray_files_are_named(corpus: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (corpus / "000000.arrow").rename(corpus / "stray.arrow")
    error = problems(corpus, capsys)
    assert "000000.arrow is missing" in error
    assert "stray.arrow is not named" in error
    (corpus / "manifest.json").unlink()
    assert "no finished shard folder" in problems(corpus, capsys)
    assert "does not exist" in problems(tmp_path / "nowhere", capsys)


def test_only_the_sampled_images_are_decoded(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_rows(corpus)
    for row in rows[3], rows[7]:  # of 12 rows, a sample of two is rows 3 and 9, a sample of one is row 6
        row["image"] = row["image"][:-40]
        row["crc32"] = zlib.crc32(row["image"])
    write_corpus(tmp_path / "bad", rows)
    assert main(["verify", str(tmp_path / "bad"), "--images", "2", "--workers", "1"]) == 1
    output = capsys.readouterr()
    assert "row 3 (r3): image: image is damaged" in output.err
    assert output.err.count("\n") == 1
    assert "2 of the images decoded" in output.out
    assert problems(tmp_path / "bad", capsys).count("\n") == 2
    assert main(["verify", str(tmp_path / "bad"), "--images", "1", "--workers", "1"]) == 0


def test_a_changed_byte_in_an_image_that_is_not_sampled_is_still_found(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, image = corpus / "000000.arrow", read_rows(corpus)[0]["image"]
    data = bytearray(path.read_bytes())
    data[data.index(image) + 100] ^= 1
    path.write_bytes(data)
    assert main(["verify", str(corpus), "--images", "1", "--workers", "1"]) == 1
    assert "row 0 (r0): the image's bytes have changed" in capsys.readouterr().err


TASK_FAULTS = [
    ("vqa", {"question": ""}, "there is no question"),
    ("pairs", {"sentence": ""}, "there is no sentence"),
    ("pairs", {"width2": 7}, "the image2 is 32 x 32, not 7 x 32"),
    ("pairs", {"crc32_2": 1}, "the image2's bytes have changed"),
    ("entailment", {"label": "maybe"}, "its label is 'maybe'"),
    ("foils", {"foil": ""}, "there is no foil"),
    ("caption", {"captions": []}, "there is no caption"),
]


@pytest.mark.parametrize(("task", "fault", "problem"), TASK_FAULTS)
def test_the_rows_of_every_task_are_checked(
    task: str, fault: dict, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("synth", "--task", task, "--count", 6, "--out", tmp_path / "good")
    rows = read_rows(tmp_path / "good")
    rows[4] |= fault
    name = json.loads((tmp_path / "good/manifest.json").read_text())["task"]
    write_corpus(tmp_path / "bad", rows, name)
    error = problems(tmp_path / "bad", capsys)
    assert "row 4 " in error
    assert problem in error
    assert error.count("\n") == 1


def test_a_manifest_that_names_a_different_task_is_refused(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = corpus / "manifest.json"
    path.write_text(path.read_text().replace('"task": "caption"', '"task": "vqa"'))
    assert "different columns from this version's vqa shards" in problems(corpus, capsys)


LIMITED = """
import resource, sys
from data_tools.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: writes fail the same way, with another error number."""
    argv = ["synth", "--task", "caption", "--count", "600", "--out", str(tmp_path / "out")]
    for limit in (100_000, 1_000_000):
        code = LIMITED.format(limit=limit)
        ended = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 1
        assert ended.stderr.startswith("mvlm-data: No room to write")
        assert ended.stderr.count("\n") == 1
        assert tree(tmp_path) == {}


def test_a_corpus_never_replaces_the_current_folder_or_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", "", tmp_path / "here"):
        assert "is the current folder" in fails("synth", "--task", "caption", "--count", 5, "--out", out)
    assert "/ holds other files" in fails("synth", "--task", "caption", "--count", 5, "--out", "/")
    assert "file/x cannot be written" in fails("synth", "--task", "caption", "--count", 5, "--out", "../file/x")


def test_a_disk_that_is_really_full_is_one_sentence_and_leaves_nothing(
    mount_disk: Callable[[str], Path], fails: Callable[..., str]
) -> None:
    disk = mount_disk("1m")
    assert "No room" in fails("synth", "--task", "caption", "--count", 600, "--out", disk / "out")
    assert list(disk.iterdir()) == []
    assert "mount point" in fails("synth", "--task", "caption", "--count", 5, "--out", disk)
    run("synth", "--task", "caption", "--count", 20, "--out", disk / "out")
