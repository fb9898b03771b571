"""`mvlm decay`: branches of a trunk whose learning rate falls to zero."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest

from mvlm.__main__ import main
from mvlm.config.load import load_stored_config
from mvlm.decay.branches import OWNED, Branch
from mvlm.errors import UserError
from mvlm.runtime import chain
from mvlm.training.zero.config import RunSide, resolve
from tests.conftest import ROOT, written
from tests.training.conftest import Staged, TrainHere, losses_by_step, read_metrics, stage
from tests.training.test_ds_config import config
from tests.training.test_evaluation_lost import damage, mend

LAUNCH = f"{sys.executable} -m mvlm"
TRUNK = ["optim.schedule=constant", "optim.warmup_steps=0", "checkpoint.every=2", "checkpoint.keep_every=2"]


@pytest.fixture
def launched(one_rank: None, own_signals: None, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were launched, each in this process."""
    words: list[list[str]] = []

    def execute(command: list[str]) -> int:
        words.append(command)
        return main(command[3:])

    monkeypatch.setattr(chain, "execute", execute)
    return words


def test_a_branch_has_neither_its_trunks_mirror_nor_copies_on_its_peers(train_here: TrainHere, tmp_path: Path) -> None:
    mirrored = [f"checkpoint.mirror=file://{tmp_path}/mirror", "checkpoint.peers=1"]
    assert train_here(tmp_path / "trunk", *TRUNK, *mirrored, "train.steps=2") == 0
    branch = Branch(tmp_path / "trunk", 2, 1, tmp_path / "out", ("mvlm",))
    branch.prepare()
    checkpoint = load_stored_config(branch.toml).checkpoint
    assert (checkpoint.mirror, checkpoint.peers) == ("", 0)


def test_a_trunk_whose_batch_has_changed_and_that_has_ended_early_is_decayed_to_the_end(
    train_here: TrainHere, scenes: Path, tmp_path: Path, launched: list[list[str]]
) -> None:
    """eval.patience ends the trunk, which no longer improves, but not its branches."""
    trunk = tmp_path / "trunk"
    evaluated = [f"data.eval={scenes}/eval", "eval.limit=4", "eval.every=1", "log.pictures=0"]
    still = ["eval.select=eval/mean_recall", "eval.patience=1", "optim.lr=1e-20", "optim.encoder_lr=0"]
    assert train_here(trunk, *TRUNK, "train.steps=2") == 0
    larger = ["train.global_batch=32", "train.steps=4"]
    assert (
        train_here(trunk, *TRUNK, *larger, *evaluated, *still, evaluate=lambda *_: ({"eval/mean_recall": 0}, None)) == 0
    )
    assert main(["decay", str(trunk), "--at", "2,4", "--steps", "3", "--launch", LAUNCH]) == 0
    result = json.loads((tmp_path / "trunk-decay/decay.json").read_text())
    assert [branch["pairs"] for branch in result["branches"]] == [5 * 16, 2 * 16 + 5 * 32]
    assert [step for step, _ in result["trunk"]] == [1, 2, 3, 4]


def test_a_branch_that_still_owes_an_evaluation_is_not_done(
    train_here: TrainHere, scenes: Path, tmp_path: Path, launched: list[list[str]]
) -> None:
    shards, branch = shutil.copytree(scenes / "eval", tmp_path / "eval"), tmp_path / "trunk-decay/step_00000002"
    evaluated = [f"data.eval={shards}", "eval.limit=4", "eval.every=100", "log.pictures=0"]
    assert train_here(tmp_path / "trunk", *TRUNK, "train.steps=2", *evaluated) == 0
    words = ["decay", str(tmp_path / "trunk"), "--at", "2", "--steps", "1", "--launch", LAUNCH]
    damage(shards / "000000.arrow", row=2)
    assert main(words) == 1
    mend(shards / "000000.arrow")
    assert main(words) == 0
    assert [line["step"] for line in read_metrics(branch) if "eval/mean_recall" in line] == [3]
    assert main(words) == 0 and len(launched) == 2


def test_a_run_whose_rate_has_left_its_peak_is_refused_as_a_trunk(
    train_here: TrainHere, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk = tmp_path / "trunk"
    assert train_here(trunk, "optim.schedule=cosine", "train.steps=1") == 0
    assert main(["decay", str(trunk), "--at", "1", "--steps", "3", "--launch", LAUNCH]) == 1
    assert f"{trunk} has optim.schedule = 'cosine', and its rate would jump back" in capsys.readouterr().err
    assert not (tmp_path / "trunk-decay").exists()


@pytest.mark.parametrize("override", ["run.dir=elsewhere", "train.steps=9", "train.epochs=2", "optim.schedule=cosine"])
def test_settings_that_define_a_branch_cannot_be_overridden(
    tmp_path: Path, override: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decay", str(tmp_path), "--at", "1", "--steps", "3", "--launch", LAUNCH, override]) == 1
    assert f"{override} cannot be given to branches" in capsys.readouterr().err


def test_a_trunk_may_be_the_current_folder(
    train_here: TrainHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    assert train_here(tmp_path / "trunk", *TRUNK, "train.steps=2") == 0
    monkeypatch.chdir(tmp_path / "trunk")
    assert main(["decay", ".", "--at", "2", "--steps", "1", "--launch", LAUNCH]) == 0
    assert (tmp_path / "trunk-decay/decay.json").exists()


def test_a_trunk_is_not_decayed_from_within_its_own_decay(train_here: TrainHere, tmp_path: Path) -> None:
    trunk = tmp_path / "trunk"
    assert train_here(trunk, *TRUNK, "optim.schedule=wsd", "optim.decay_steps=2", "train.steps=4") == 0
    at_the_peak, falling = (Branch(trunk, at, 1, tmp_path / "out", ("mvlm",)) for at in (2, 4))
    with pytest.raises(UserError, match="decays from step 2 to 4, and from step 4 its rate would jump back"):
        falling.prepare()
    at_the_peak.prepare()
    assert at_the_peak.toml.exists() and not falling.toml.exists()


def test_a_trunk_with_stages_is_not_decayed_from_within_a_decay_of_one(staged: Staged) -> None:
    """A stage's decay spans the stages that continue its schedule; the next stage is at its peak again."""
    falling = ["optim.schedule = 'wsd'", "optim.decay_steps = 3"]
    tables = stage("train.steps = 2", *falling) + stage("train.steps = 2", "schedule = 'continue'")
    trunk = staged("trunk", tables + stage("train.steps = 2"), *TRUNK)

    def prepare(at: int) -> None:
        Branch(trunk, at, 1, trunk.parent / "out", ("mvlm",)).prepare()

    for at in (2, 4):
        with pytest.raises(UserError, match=f"decays from step 1 to 4, and from step {at} its rate would jump back"):
            prepare(at)
    prepare(6)


@pytest.mark.campaign
def test_a_trunk_is_decayed_from_its_checkpoints_and_stays_unchanged(
    train_here: TrainHere, scenes: Path, tmp_path: Path, launched: list[list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    trunk, evaluated = (
        tmp_path / "trunk",
        [f"data.eval={scenes}/eval", "eval.limit=16", "eval.share=1e9", "log.pictures=0"],
    )
    assert train_here(trunk, *TRUNK, *evaluated, "eval.every=2", deepspeed={"zero_optimization": {"stage": 1}}) == 0
    before = written(trunk)
    command = ["decay", str(trunk), "--at", "4,2", "--steps", "3", "--launch", LAUNCH]
    assert main(command) == 0
    assert written(trunk) == before
    out = tmp_path / "trunk-decay"
    assert [words[4] for words in launched] == [str(out / f"step_0000000{at}.toml") for at in (2, 4)]
    own, branch = losses_by_step(trunk), out / "step_00000002"
    found = losses_by_step(branch)
    assert sorted(found) == [3, 4, 5]
    assert found[3] == own[3], "the same samples and weights"
    assert found[4] == own[4], "the same moments: the first update of the decay is made at the peak"
    assert found[5] != own[5]
    rates = [line["lr"] / 1e-3 for line in read_metrics(branch) if "loss" in line]
    assert rates == pytest.approx([1.0, 1 - math.sqrt(1 / 3), 1 - math.sqrt(2 / 3)])
    result = json.loads((out / "decay.json").read_text())
    assert result["metric"] == "eval/mean_recall" and [b["at"] for b in result["branches"]] == [2, 4]
    last = [line for line in read_metrics(branch) if "eval/mean_recall" in line][-1]
    assert result["branches"][0]["decayed"]["eval/mean_recall"] == last["eval/mean_recall"]
    assert result["branches"][0]["decayed"]["loss"] == pytest.approx(sum(found[s][0] for s in (3, 4, 5)) / 3)
    assert result["branches"][0]["pairs"] == 5 * 16
    assert (out / "decay.png").read_bytes().startswith(b"\x89PNG")
    assert "mean_recall" in capfd.readouterr().out

    launched.clear()
    assert main(command) == 0 and launched == [], "finished branches are not run again"
    assert main([*command[:4], "--steps", "2", "--launch", LAUNCH]) == 1
    assert "decays in 3 steps and not in 2: give --steps 3" in capfd.readouterr().err
    assert main(["decay", str(trunk), "--at", "3", "--steps", "2"]) == 1
    assert f"{trunk} has no checkpoint of step 3 (it has 0, 2, 4, 6)" in capfd.readouterr().err


@pytest.mark.parametrize("file", sorted((ROOT / "ds_configs").glob("*[!e].json")), ids=lambda path: path.stem)
def test_a_trunks_resolved_deepspeed_json_resolves_to_itself(file: Path) -> None:
    run, content = config(), json.loads(file.read_text())
    side = RunSide(("a", "b"), "run", run.train, run.optim, 2, (10, 1), 10**7)
    whole = resolve(content, side)
    assert resolve({key: value for key, value in whole.items() if key not in OWNED}, side) == whole
