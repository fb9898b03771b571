"""Every mistake of a user gives one sentence on stderr, an exit code, and nothing that looks finished."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.__main__ import main as data_tools
from mvlm.__main__ import main as mvlm
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.data.shards.corpus import UnreadableRow
from mvlm.errors import DataLost, HeldOutLost, MemoryCorrupted, StorageLost, UserError
from mvlm.runtime.rendezvous import RanksApart
from mvlm.training.logging import trackers
from tests import ranks
from tests.conftest import ROOT, TINY, mvlm_command, run_command
from tests.training.conftest import one_rank  # noqa: F401

Fails = Callable[..., str]
TOML, JSON = str(ROOT / "mvlm/configs/tiny.toml"), str(ROOT / "ds_configs/cpu.json")


pytestmark = pytest.mark.usefixtures("own_signals")


def sentence(error: str) -> str:
    """The last line of stderr, which must say what to do after a colon or a semicolon."""
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert ":" in last or ";" in last
    assert last.endswith((".", "?")), last
    return last


@pytest.mark.parametrize(
    "error",
    [
        *(kind("A sentence.") for kind in (UserError, StorageLost, MemoryCorrupted, DataLost, RanksApart)),
        HeldOutLost.of(DataLost("A sentence.")),
        UnreadableRow("shards row 3", "k3", "its image has changed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_mistake_reaches_other_ranks_unchanged(error: UserError) -> None:
    arrived = copy.copy(error)  # rebuilt as by unpickling
    assert type(arrived) is type(error)
    assert (str(arrived), arrived.exit_code) == (str(error), error.exit_code)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """fails(main, *words) -> the sentence of a command that exits with 1 and writes nothing else to stderr."""

    def run(main: Callable[[list[str]], int], *words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        return sentence(error)

    return run


def train(run: Path, *overrides: str, toml: object = TOML, deepspeed: object = JSON) -> list[str]:
    given = [*TINY, f"run.dir={run}", "train.steps=4", *overrides]
    return ["train", str(toml), "--deepspeed_config", str(deepspeed), *given]


def looks_untrained(run: Path) -> None:
    """No command takes the folder for a run."""
    assert not (run / "run.json").exists()
    assert not (run / "config.toml").exists()
    with pytest.raises(UserError, match="No checkpoint"):
        find_checkpoint(run)


def source(folder: Path, images: list[bytes | None], lines: list[str] | None = None) -> Path:
    """A folder of pictures with captions; None stands for a good picture."""
    folder.mkdir()
    rows = []
    for number, image in enumerate(images):
        path = folder / f"{number}.png"
        if image is None:
            Image.fromarray(np.full((20, 20, 3), number, np.uint8)).save(path)
        else:
            path.write_bytes(image)
        rows.append(json.dumps({"id": f"r{number}", "image": path.name, "captions": [f"number {number}"]}))
    (folder / "captions.jsonl").write_text("\n".join(rows if lines is None else lines) + "\n")
    return folder


# --- making shards


def test_a_tracker_that_is_not_installed_is_refused(
    fails: Fails, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    said = fails(mvlm, *train(tmp_path / "run", f"data.train={scenes}/train", "log.wandb=project"))
    assert "log.wandb" in said and "pip install wandb" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [("shard", "folder"), ("shard", "webdataset"), ("verify",), ("stats",)])
def test_a_missing_folder_is_named(fails: Fails, tmp_path: Path, command: tuple[str, ...]) -> None:
    out = ["--out", tmp_path / "out"] if command[0] == "shard" else []
    assert "nowhere" in fails(data_tools, *command, tmp_path / "nowhere", *out)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_captions_is_refused(fails: Fails, tmp_path: Path) -> None:
    (source(tmp_path / "in", [None]) / "captions.jsonl").unlink()
    assert "captions.jsonl" in fails(data_tools, "shard", "folder", tmp_path / "in", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_corpus_of_empty_captions_is_refused(fails: Fails, tmp_path: Path) -> None:
    folder = source(tmp_path / "in", [None], ['{"id": "r0", "image": "0.png", "captions": []}'])
    message = fails(data_tools, "shard", "folder", folder, "--out", tmp_path / "out")
    assert "no caption" in message
    assert not (tmp_path / "out").exists()


def test_too_many_unreadable_images_are_refused(fails: Fails, tmp_path: Path) -> None:
    folder = source(tmp_path / "in", [b"<html>404</html>", b"", None])
    message = fails(data_tools, "shard", "folder", folder, "--out", tmp_path / "out")
    assert "2 of 3 records" in message
    assert not (tmp_path / "out").exists()
    listed = [json.loads(line) for line in (tmp_path / "out.quarantine.jsonl").read_text().splitlines()]
    assert [line["key"] for line in listed] == ["r0", "r1"]


def test_one_unreadable_image_is_quarantined_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = source(tmp_path / "in", [None, b"<html>404</html>", None])
    assert data_tools(["shard", "folder", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "dropped 1 record, listed in quarantine.jsonl:" in capsys.readouterr().out
    (line,) = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "r1"
    assert data_tools(["verify", str(tmp_path / "out")]) == 0


# --- starting a run


def test_a_missing_toml_is_named(fails: Fails, tmp_path: Path) -> None:
    assert "absent.toml" in fails(mvlm, *train(tmp_path / "run", toml=tmp_path / "absent.toml"))
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_in_the_toml_is_named(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[train]\nglobal_bacth = 8\n")
    message = fails(mvlm, *train(tmp_path / "run", toml=tmp_path / "mine.toml"))
    assert "mine.toml" in message and "global_bacth" in message and "train.global_batch" in message
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_on_the_command_line_is_named(fails: Fails, tmp_path: Path, scenes: Path) -> None:
    message = fails(mvlm, *train(tmp_path / "run", f"data.trian={scenes}"))
    assert "data.trian" in message and "did you mean data.train?" in message


def test_everything_wrong_is_said_at_once(tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mvlm(train(tmp_path / "run", "train.lr=1", "optim.lr=-1", deepspeed=tmp_path / "absent.json")) == 1
    wrong_key, wrong_value, no_json = capsys.readouterr().err.splitlines()
    assert "train.lr" in wrong_key and "optim.lr" in wrong_value and "absent.json" in no_json
    assert mvlm(train(tmp_path / "run", f"data.train=['{scenes}/no', '{scenes}/nor this']")) == 1
    one, other = capsys.readouterr().err.splitlines()
    assert f"{scenes}/no:" in one and "nor this" in other
    assert not (tmp_path / "run").exists()


def test_a_run_without_training_data_is_refused(fails: Fails, tmp_path: Path) -> None:
    message = fails(mvlm, *train(tmp_path / "run"))
    assert "data.train" in message and "mvlm-data shard" in message
    assert not (tmp_path / "run").exists()


def test_missing_shards_are_named(fails: Fails, tmp_path: Path) -> None:
    assert "nowhere" in fails(mvlm, *train(tmp_path / "run", f"data.train={tmp_path}/nowhere"))
    assert not (tmp_path / "run").exists()


def test_for_a_folder_without_shards_those_in_it_are_suggested(fails: Fails, tmp_path: Path, scenes: Path) -> None:
    said = fails(mvlm, *train(tmp_path / "run", f"data.train={scenes}"))
    assert "manifest.json" in said and "eval, train" in said and f"such as {scenes}/train" in said
    (tmp_path / "empty").mkdir()
    assert "mvlm-data shard" in fails(mvlm, *train(tmp_path / "run", f"data.train={tmp_path}/empty"))


def test_a_cut_shard_is_named(fails: Fails, tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(scenes / "train", tmp_path / "shards")
    shard = tmp_path / "shards/000000.arrow"
    os.truncate(shard, shard.stat().st_size // 2)
    message = fails(mvlm, *train(tmp_path / "run", f"data.train={tmp_path}/shards"))
    assert "000000.arrow" in message and "rows are lost" in message
    assert not (tmp_path / "run").exists()
    capsys.readouterr()
    assert data_tools(["verify", str(tmp_path / "shards")]) == 1
    assert "000000.arrow" in sentence(capsys.readouterr().err)


@pytest.mark.parametrize("content", [None, "{'zero': 1}", "[]"])
def test_a_missing_or_malformed_json_is_named(fails: Fails, tmp_path: Path, scenes: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "mine.json").write_text(content)
    words = train(tmp_path / "run", f"data.train={scenes}/train", deepspeed=tmp_path / "mine.json")
    assert "mine.json" in fails(mvlm, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"train_batch_size": 999}, ("train_batch_size", "999", "16", "tiny.toml")),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 0.5}}}, ("optimizer.params.lr", "0.5", "0.001", "tiny.toml")),
        ({"fp16": {"enabled": True}}, ("fp16", "stage 0", "bf16")),
    ],
)
def test_a_json_that_contradicts_the_toml_is_refused(
    fails: Fails, tmp_path: Path, scenes: Path, content: dict, parts: tuple[str, ...]
) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(content))
    words = train(tmp_path / "run", f"data.train={scenes}/train", deepspeed=tmp_path / "mine.json")
    message = fails(mvlm, *words)
    for part in ("mine.json", *parts):
        assert part in message
    looks_untrained(tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.global_batch=17", "global_batch"),
        ("train.micro_batch=6", "micro_batch"),
        ("data.tokenizer=nowhere/at/all.json", "nowhere/at/all.json"),
        ("model.vision=no_such_vit", "no_such_vit"),
        ("model.image_size=56", "vit_base"),
        ("checkpoint.resume=nowhere", "nowhere (checkpoint.resume)"),
        ("checkpoint.init=nowhere", "nowhere (checkpoint.init)"),
        ("objectives.image_mask_block=3", "image_mask_block"),
    ],
)
def test_an_impossible_setting_is_refused(fails: Fails, tmp_path: Path, scenes: Path, override: str, part: str) -> None:
    assert part in fails(mvlm, *train(tmp_path / "run", f"data.train={scenes}/train", override))
    looks_untrained(tmp_path / "run")


def test_a_run_folder_that_is_a_file_is_refused(fails: Fails, tmp_path: Path, scenes: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert "run.dir" in fails(mvlm, *train(tmp_path / "run", f"data.train={scenes}/train"))
    assert (tmp_path / "run").read_text() == "mine"


def test_a_path_that_is_not_utf_8_is_named(fails: Fails, tmp_path: Path, scenes: Path) -> None:
    path = tmp_path / os.fsdecode(b"B\xfcro")
    named = "B\\udcfcro"
    said = fails(data_tools, "shard", "folder", source(tmp_path / "in", [None]), "--out", path, "--workers", "1")
    assert named in said and "is not UTF-8: rename that file or folder" in said
    assert named in fails(mvlm, *train(path / "run", f"data.train={scenes}/train"))
    looks_untrained(path / "run")


def test_an_environment_without_utf_8_is_told_how_to_have_it(tmp_path: Path) -> None:
    words = ["shard", "folder", str(source(tmp_path / "in", [None])), "--out", str(tmp_path / "Büro"), "--workers", "1"]
    ascii_alone = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    ended = run_command([sys.executable, "-m", "data_tools", *words], **ascii_alone)
    assert ended.returncode == 1, ended.stderr
    said = sentence(ended.stderr)
    assert "This environment's encoding, ascii, lacks characters that are needed: set PYTHONUTF8=1." in said


# --- reading a run


def test_an_evaluation_without_a_checkpoint_is_refused(fails: Fails, tmp_path: Path, scenes: Path) -> None:
    json_file = tmp_path / "numbers.json"
    words = ["evaluate", "retrieval", "--checkpoint", tmp_path, "--data", scenes / "eval", "--json", json_file]
    message = fails(mvlm, *words)
    assert "No checkpoint" in message and str(tmp_path) in message
    assert not json_file.exists()


def test_a_report_without_a_run_is_refused(fails: Fails, tmp_path: Path) -> None:
    assert str(tmp_path) in fails(mvlm, "report", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [[], ["trian"], ["train"], ["train", TOML], ["train", TOML, "--deepspeed_config", JSON, "--stepz", "3"]],
)
def test_wrong_usage_has_its_own_exit_code(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        mvlm(words)
    assert ended.value.code == 2
    assert "usage: mvlm" in capsys.readouterr().err


# --- during a run


def test_an_image_damaged_after_sharding_is_named_by_its_row(
    tmp_path: Path,
    scenes: Path,
    one_rank: None,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(scenes / "train", tmp_path / "shards")
    shard = tmp_path / "shards/000000.arrow"
    shard.write_bytes(shard.read_bytes().replace(b"\x89PNG", b"\x00PNG"))
    assert mvlm(train(tmp_path / "run", f"data.train={tmp_path}/shards")) == 1
    message = sentence(capfd.readouterr().err)
    assert "000000.arrow row" in message and "checksum" in message
    assert find_checkpoint(tmp_path / "run").name == "step_00000000"  # the initial one


@pytest.mark.parametrize("launcher", [False, pytest.param(True, marks=pytest.mark.campaign)])
def test_rank_0_reports_a_mistake_before_the_launcher_ends_all_ranks(tmp_path: Path, launcher: bool) -> None:
    """DeepSpeed's launcher, or one that ends the others at once."""
    words = train(tmp_path / "run")
    ended = run_command(mvlm_command(*words, ranks=2)) if launcher else ranks.run_ranks(ranks.mvlm, *words, ranks=2)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr + ended.stdout
    spoken = [line for line in ended.stderr.splitlines() if line.startswith("mvlm: ")]
    assert "data.train" in spoken[0] and "rank" not in spoken[0]


@pytest.mark.campaign
@pytest.mark.parametrize(("room", "what"), [("8k", "tokenizer"), ("56k", "step_00000000"), ("1m", "step_00000004")])
def test_a_full_disk_is_reported(mount_disk: Callable[[str], Path], scenes: Path, room: str, what: str) -> None:
    """In a process of its own; tests/training/test_checkpoint.py fills a disk under this one."""
    run = mount_disk(room) / "run"
    words = train(run, f"data.train={scenes}/train", "checkpoint.every=0")
    ended = run_command(mvlm_command(*words, launcher=False))
    assert ended.returncode == 1, ended.stderr
    message = sentence(ended.stderr)
    assert "No space left" in message and what in message
    whole = sorted(path.name for path in (run / "checkpoints").glob("step_*"))
    assert whole == (["step_00000000"] if room == "1m" else [])


@pytest.mark.campaign
def test_fp16_on_a_processor_without_it_is_refused(tmp_path: Path, scenes: Path) -> None:
    (tmp_path / "mine.json").write_text('{"fp16": {"enabled": true}, "zero_optimization": {"stage": 1}}')
    words = train(tmp_path / "run", f"data.train={scenes}/train", deepspeed=tmp_path / "mine.json")
    ended = run_command(mvlm_command(*words, launcher=False))
    if ended.returncode == 0:
        pytest.skip("this processor computes in fp16")
    assert ended.returncode == 1, ended.stderr
    assert "fp16" in sentence(ended.stderr)
    looks_untrained(tmp_path / "run")
