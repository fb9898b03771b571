"""A checkpoint has everything that is needed to use it: the rest of the run folder may be lost or damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from mvlm.__main__ import main
from mvlm.checkpoint.description import TOKENIZER, described_in
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.errors import UserError
from mvlm.pretrained.runs import load_run
from tests.conftest import signals_kept
from tests.training.conftest import KEPT, Resume, losses_by_step, resume_in

EVERY = "checkpoint.every=1"
MORE = [EVERY, "train.steps=8"]


@pytest.fixture(scope="module")
def six_steps(one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps whose last two checkpoints were saved by this version."""
    with signals_kept():
        return resume_in(tmp_path_factory.mktemp("six"), 0, EVERY)


@pytest.fixture
def run(six_steps: Path, tmp_path: Path) -> Path:
    """A copy of the run of six steps, where `resume_kept` looks for it."""
    return shutil.copytree(six_steps, tmp_path / "zero0")


@pytest.fixture(scope="module")
def undisturbed(six_steps: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[float, ...]]:
    """The losses of another copy, trained up to the eighth step."""
    place = tmp_path_factory.mktemp("eight")
    shutil.copytree(six_steps, place / "zero0")
    with signals_kept():
        return losses_by_step(resume_in(place, 0, *MORE))


def permute_ids(tokenizer: Path) -> None:
    """Swap two tokens, which leaves a tokenizer that loads and is as long as before."""
    content = json.loads(tokenizer.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    tokenizer.write_text(json.dumps(content))


def test_every_file_of_a_checkpoint_is_listed_with_its_hash(run: Path) -> None:
    checkpoint = find_checkpoint(run)
    files = {entry["file"]: entry for entry in json.loads((checkpoint / "index.json").read_text())["files"]}
    found = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    assert found == set(files) | {"index.json"}
    described = ["config.toml", "deepspeed.json", "run.json", "text_encoder/config.json"]
    described += ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]
    assert set(described) < found
    for name in described:
        content = (checkpoint / name).read_bytes()
        assert content == (run / name).read_bytes()
        assert files[name]["sha256"] == hashlib.sha256(content).hexdigest()


def test_checkpoints_are_resumed_evaluated_and_exported_without_the_rest_of_the_run_folder(
    run: Path, undisturbed: dict[int, tuple[float, ...]], resume_kept: Resume, tmp_path: Path
) -> None:
    for path in run.iterdir():
        if path.name != "checkpoints":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shards, out = str(KEPT / "shards"), tmp_path / "exported"
    words = ["evaluate", "retrieval", "--checkpoint", str(run), "--data", shards, "--json", str(tmp_path / "r.json")]
    assert main(words) == 0
    assert main(["export", str(run), "--out", str(out)]) == 0
    assert (out / "tokenizer.json").is_file() and "8 steps" not in (out / "README.md").read_text()
    assert load_run(run).step == 6
    resume_kept(0, *MORE)
    assert losses_by_step(run) == {step: undisturbed[step] for step in (7, 8)}


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_tokenizer_that_differs_from_the_checkpoints_is_restored_with_a_sentence(
    run: Path,
    undisturbed: dict[int, tuple[float, ...]],
    resume_kept: Resume,
    capfd: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    """With its ids permuted, the run would resume with other losses."""
    tokenizer, added = run / TOKENIZER / "tokenizer.json", run / TOKENIZER / "added_tokens.json"
    right = tokenizer.read_bytes()
    if damage == "changed":
        permute_ids(tokenizer)
        added.write_text('{"bar": 261}')
    else:
        shutil.rmtree(run / TOKENIZER)
    capfd.readouterr()
    resume_kept(0, *MORE)
    (said,) = (line for line in capfd.readouterr().err.splitlines() if "restored from step_00000006" in line)
    for words in {"changed": ("was different", "was added"), "missing": ("was missing",)}[damage]:
        assert words in said
    assert tokenizer.read_bytes() == right and not added.exists()
    assert losses_by_step(run) == undisturbed


def test_a_checkpoint_whose_tokenizer_has_changed_is_refused_and_the_one_before_it_resumed(
    run: Path, resume_kept: Resume, capfd: pytest.CaptureFixture[str]
) -> None:
    before = losses_by_step(run)
    permute_ids(find_checkpoint(run) / TOKENIZER / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer.json does not have the SHA-256 .*: use another checkpoint"):
        load_run(run)
    assert load_run(run / "checkpoints/step_00000005").step == 5
    resume_kept(0, EVERY)
    assert "step_00000006 is damaged (tokenizer/tokenizer.json" in capfd.readouterr().err
    assert losses_by_step(run) == before


def test_weights_with_a_flipped_bit_are_not_loaded(run: Path) -> None:
    (weights, *_) = find_checkpoint(run).glob("weights-*")
    content = bytearray(weights.read_bytes())
    content[-4] ^= 1  # the least significant bit of the last number
    weights.write_bytes(content)
    with pytest.raises(
        UserError, match=r"step_00000006 is damaged \(weights-.* does not have the SHA-256 .*: use another"
    ):
        load_run(run)


def test_an_old_checkpoint_reads_its_run_folder_and_says_what_is_missing(resume_kept: Resume, tmp_path: Path) -> None:
    old = shutil.copytree(KEPT / "zero0", tmp_path / "old")
    assert described_in(find_checkpoint(old)) == old
    assert load_run(old).step == 3
    shutil.rmtree(old / TOKENIZER)
    message = r"old lacks tokenizer, of which step_00000003 has no copy: copy it there from a backup"
    with pytest.raises(UserError, match=message):
        load_run(old)
    shutil.copytree(old, tmp_path / "zero0")
    with pytest.raises(UserError, match="lacks tokenizer"):
        resume_kept(0)
    shutil.copytree(KEPT / "zero0" / TOKENIZER, tmp_path / "zero0" / TOKENIZER)  # as the message says
    resume_kept(0)


def test_another_run_that_resumes_a_checkpoint_gets_its_description(
    run: Path, resume_kept: Resume, tmp_path: Path
) -> None:
    (run / TOKENIZER / "tokenizer.json").unlink()
    (tmp_path / "zero1").mkdir()
    other = resume_kept(1, f"checkpoint.resume={run / 'checkpoints/step_00000006'}", *MORE)
    assert (other / TOKENIZER / "tokenizer.json").read_bytes() == (KEPT / "zero0/tokenizer/tokenizer.json").read_bytes()
    assert load_run(other).step == 8
