"""`mvlm check` finds everything that is wrong at once, and words it as training would."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from data_tools.reshape.merge import merge
from mvlm.__main__ import main
from mvlm.check.checkpoints import check_memory, checkpoint_bytes
from mvlm.check.report import SHOWN, Report
from mvlm.check.shards import check_corpus
from mvlm.checkpoint.state import OrderSpec
from mvlm.config.load import given_keys, load_config
from mvlm.training.fit.run import train
from mvlm.training.health.heartbeat import HEARTBEATS, Heartbeat
from tests.check.checked import check_run
from tests.conftest import ROOT, TINY, run_command
from tests.ranks import mvlm, run_ranks
from tests.training.conftest import one_rank  # noqa: F401

TOML, JSON = str(ROOT / "mvlm/configs/tiny.toml"), str(ROOT / "ds_configs/cpu.json")


pytestmark = pytest.mark.usefixtures("own_signals")


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory, one_rank: None) -> Path:  # noqa: F811
    """A run of two steps with a checkpoint after each."""
    run = tmp_path_factory.mktemp("trained") / "run"
    words = [*TINY, f"data.train={scenes}/train", f"run.dir={run}", "train.steps=2", "checkpoint.every=1"]
    assert train(load_config(TOML, words), (JSON, TOML), given_keys(TOML, words)) == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def overrides(scenes: Path, run: Path, *more: str) -> list[str]:
    shards = [f"data.train={scenes}/train", f"data.eval={scenes}/eval"]
    return [*TINY, *shards, f"run.dir={run}", "train.steps=4", *more]


def problems(words: list[str], deepspeed: str = JSON, world: int = 1, deep: bool = False) -> list[str]:
    return check_run(TOML, words, deepspeed, world, deep).problems


def assert_only(found: list[str], *parts: str) -> None:
    """There is exactly one problem; its sentence contains these parts and says what to do."""
    (sentence,) = found
    assert all(part in sentence for part in parts), sentence
    assert sentence.endswith((".", "?")) and (":" in sentence or ";" in sentence)


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which `mvlm train` refuses a run."""
    assert main(["train", TOML, "--deepspeed_config", JSON, *words]) == 1
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("mvlm: ")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_can_start_or_resume_passes(
    scenes: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(run)
    words = ["check", TOML, "--deepspeed_config", JSON, "--world", "3", "--deep", *overrides(scenes, run)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 of 3 ranks x 1 micro-batch of 8, ITM groups of 4" in said
    assert "step_00000002 is where the run resumes, at step 2, lengths and hashes right" in said
    assert "step_00000002 holds this model's parameters" in said and "ZeRO stage 1, fp32 on this machine" in said
    assert content(run) == before
    for start in ("", f"checkpoint.init={run}", f"checkpoint.resume={run}/checkpoints/step_00000001"):
        assert problems(overrides(scenes, tmp_path / "new", *filter(None, [start]))) == []
    assert not (tmp_path / "new").exists()
    shorter = check_run(TOML, overrides(scenes, run, "data.text_length=5"), JSON, 1, False)
    assert any("are longer, up to" in f.sentence for f in shorter.findings if f.verdict == "unknown")


def test_the_order_is_chosen_recorded_and_reported_with_the_share_of_neighbouring_rows(scenes: Path, run: Path) -> None:
    """The run was shuffled globally; another order, asked for now, only takes effect with the next epoch."""
    state = json.loads((run / "checkpoints/step_00000002/state.json").read_text())
    assert state["order"] == [OrderSpec("global").to_json()]
    assert json.loads((run / "run.json").read_text())["config"]["data"]["shuffle"] == "global"

    def reported(*words: str) -> list[str]:
        found = check_run(TOML, overrides(scenes, run, *words), JSON, 1, False).findings
        return [f.sentence for f in found if "rows of them in the source" in f.sentence]

    (sentence,) = reported()
    share, shuffled = re.fullmatch(
        r".* is a global shuffle: in a batch of \d+, ([\d.]+)%.*\(([\d.]+)% in a full shuffle\)\.", sentence
    ).groups()
    assert 0 < float(share) < 2 * float(shuffled)
    now, then = reported("data.shuffle=blocks", "data.shuffle_block=16", "data.shuffle_window=1")
    assert now == sentence and "blocks" in then
    assert float(re.findall(r"([\d.]+)%", then)[0]) > float(share)


def test_everything_that_is_wrong_is_reported_at_once(
    scenes: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = shutil.copytree(scenes / "eval", tmp_path / "shards")
    os.truncate(shards / "000000.arrow", 1000)
    os.truncate(next((run / "checkpoints/step_00000002").glob("weights-*")), 100)
    (run / "checkpoints/latest").unlink()
    wrong = {
        "train_batch_size": 999,
        "elasticity": {"enabled": True},
        "optimizer": {"params": {"lr": 0.5, "momentum": 0.9}},
        "scheduler": {"params": {"total_num_steps": 7}},
        "zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "disk"}},
        "fp16": {"enabled": True},
        "bf16": {"enabled": True},
    }
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    words = overrides(
        scenes, run, f"data.eval={shards}", "run.seed=5", "kernels.attention=flash", "model.cross_depth=2"
    )
    assert main(["check", TOML, "--deepspeed_config", str(tmp_path / "wrong.json"), "--json", *words]) == 1
    report = json.loads(capsys.readouterr().out)
    found = [finding["sentence"] for finding in report["findings"] if finding["verdict"] == "wrong"]
    expected = [
        "shards/000000.arrow has 1000 bytes",
        "run.seed was 0 in the run of",
        "model.cross_depth was 1 in the run of",
        "step_00000001 lacks cross_image.blocks.1",
        "kernels.attention = 'flash' is not known",
        "section 'elasticity' cannot work here",
        "sets train_batch_size to 999 but",
        "sets optimizer.params.lr to 0.5 but",
        "sets optimizer.params.momentum to 0.9",
        "sets scheduler.params.total_num_steps to 7 but",
        "enables both fp16 and bf16",
        "offload_optimizer.device is 'disk'",
        "zero_optimization.offload_param, which needs ZeRO stage 3",
    ]
    for part in expected:
        assert sum(part in sentence for sentence in found) == 1, part
    assert len(found) == report["problems"] == len(expected)
    assert report["findings"][0].keys() == {"topic", "verdict", "sentence"}
    warned = [finding["sentence"] for finding in report["findings"] if finding["verdict"] == "warning"]
    assert "latest is missing: training would resume from step_00000001, the newest whole checkpoint" in warned[0]
    assert "step_00000002 is damaged (weights-" in " ".join(warned)


def test_a_damaged_checkpoint_that_training_would_skip_is_only_a_warning(scenes: Path, run: Path) -> None:
    os.truncate(next((run / "checkpoints/step_00000002").glob("weights-*")), 100)
    report = check_run(TOML, overrides(scenes, run), JSON, 1, False)
    assert report.problems == []
    assert any(f.verdict == "warning" and "training would set it aside" in f.sentence for f in report.findings)


def test_a_run_that_is_still_training_in_the_folder_is_a_warning(scenes: Path, run: Path) -> None:
    """A second job in the same run.dir would end the first."""
    here = Heartbeat(1, 0, socket.gethostname(), os.getpid(), 3, "a step", 9, 0.0, False, False, False, time.time())
    elsewhere = replace(here, host="n7", pid=1)
    with subprocess.Popen(["true"]) as ended:
        pass

    def warned(beat: Heartbeat) -> list[str]:
        beat.write(run / HEARTBEATS)
        findings = check_run(TOML, overrides(scenes, run), JSON, 1, False).findings
        return [found.sentence for found in findings if (found.topic, found.verdict) == ("run", "warning")]

    assert_only(
        warned(here),
        f"Attempt 1 is training in {run} (heartbeat ",
        f"on {here.host}): a run that begins there ends it",
        "run.dir",
    )
    assert_only(warned(elsewhere), "ago on n7): ")
    assert not warned(replace(elsewhere, time=time.time() - 600)) and not warned(replace(elsewhere, attempt=2))
    assert not warned(replace(here, pid=ended.pid)) and not warned(replace(here, step=2))  # its step is saved
    with open(run / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 3, "loss": 1.5}\n')
    assert_only(warned(replace(here, step=1)), "Attempt 1 is training")  # heartbeats are rarer than steps


def test_a_toml_with_several_mistakes(scenes: Path, tmp_path: Path) -> None:
    toml = tmp_path / "mine.toml"
    toml.write_text('[train]\nglobal_bacth = 8\n[optim]\nlr = -1\n[data]\nflip = "no"\n[model]\ndropout = 2\n')
    found = check_run(str(toml), [f"data.train={scenes}/nowhere", "data"], JSON, 1, False).problems
    expected = ["train.global_bacth; did you mean", "optim.lr is -1", "data.flip is 'no'", "model.dropout is 2"]
    expected += ["'data' is not of the form", "No shards at"]
    assert [sum(part in sentence for sentence in found) for part in expected] == [1] * len(expected)
    assert len(found) == len(expected)
    toml.write_text("[train\n")
    assert_only(check_run(str(toml), [], None, 1, False).problems, "mine.toml is not valid TOML")
    found = check_run(str(tmp_path / "absent.toml"), [], str(tmp_path / "absent.json"), 1, False).problems
    assert ["absent.toml" in found[0], "absent.json" in found[1]] == [True, True]


@pytest.mark.parametrize(
    "override",
    [
        "data.train=[]",
        "train.micro_batch=6",
        "data.tokenizer=nowhere/at/all.json",
        "model.vision=no_such_vit",
        "model.text_weights=pretrained",
        "model.text=gpt2",
        "model.text_args.num_layers=3",
        "data.text_length=63",
        "train.freeze=['visoin']",
        "checkpoint.init=nowhere",
        "objectives.image_mask_block=3",
        "task.name=vqa",
    ],
)
def test_check_and_train_say_the_same(
    override: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = overrides(scenes, tmp_path / "run", "data.eval=[]", override)
    assert refusal(words, capsys) in problems(words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", ["eval.select=eval/typo", 'eval.foils=["nowhere"]', "eval.classes=nowhere"])
def test_check_and_train_say_the_same_about_evaluation_settings(
    override: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = overrides(scenes, tmp_path / "run", f"data.eval={scenes}/eval", override)
    assert problems(words) == [refusal(words, capsys)]


@pytest.mark.parametrize("override", ["model.dropout=0.1", "model.cross_heads=1"])
def test_check_and_train_say_the_same_about_layers_that_ranks_cannot_split(
    override: str, scenes: Path, tmp_path: Path
) -> None:
    split, words = tmp_path / "split.json", overrides(scenes, tmp_path / "run", override)
    split.write_text(json.dumps({"tensor_parallel": {"autotp_size": 2}}))
    done = run_ranks(mvlm, "train", TOML, "--deepspeed_config", str(split), *words, ranks=2)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1].removeprefix("mvlm: ")
    assert problems(words, str(split), world=2) == [said]
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_check_and_train_say_the_same_about_a_tracker_that_is_not_installed(
    tracker: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec(tracker):
        pytest.skip(f"{tracker} is installed")
    words = overrides(scenes, tmp_path / "run", f"log.{tracker}=project")
    assert problems(words) == [refusal(words, capsys)]


def test_the_size_of_a_checkpoint_includes_the_averaged_weights(scenes: Path, tmp_path: Path) -> None:
    config = load_config(TOML, overrides(scenes, tmp_path, "train.ema=0.9"))
    assert checkpoint_bytes(100, config) == 1600 == 400 + checkpoint_bytes(100, load_config(TOML, TINY))


def test_more_steps_than_a_checkpoint_name_can_hold_are_a_problem(scenes: Path, tmp_path: Path) -> None:
    words = overrides(scenes, tmp_path / "run", "train.steps=0", "train.epochs=1e12")
    for deepspeed in (None, JSON):
        found = check_run(TOML, words, deepspeed, 1, False)
        assert_only(found.problems, "train.epochs = 1000000000000.0 makes", "lower it")


def test_a_missing_encoder_is_named(scenes: Path, tmp_path: Path) -> None:
    words = overrides(scenes, tmp_path / "run", "model.text=no/such/folder", "model.text_weights=pretrained")
    found = problems(words)
    assert any("model.text = 'no/such/folder' is neither a folder here nor a name on the hub" in one for one in found)


def test_check_and_train_say_the_same_about_a_checkpoint(
    scenes: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = overrides(scenes, run, "data.eval=[]", f"data.train={scenes}/eval")
    said = refusal(words, capsys)
    assert "other shards" in said and problems(words) == [said]
    next((run / "checkpoints/step_00000002").glob("moments-*")).unlink()
    assert_only(problems(words), "step_00000002 holds no optimizer moments", "checkpoint.init")


def test_hashes_are_compared_only_on_request(scenes: Path, run: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(scenes / "eval", tmp_path / "shards")
    weights = next((run / "checkpoints/step_00000001").glob("weights-*"))
    for file in (shards / "000000.arrow", weights):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    words = overrides(scenes, run, f"data.eval={shards}", "optim.warmup_steps=2")
    assert problems(words) == []
    report = check_run(TOML, words, JSON, 1, True)
    assert_only(report.problems, "000000.arrow has changed")
    assert_only([f.sentence for f in report.findings if f.verdict == "warning"], "step_00000001 is damaged")


def test_an_impossible_run_folder_is_refused(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert_only(problems(overrides(scenes, tmp_path / "file/run")), "file", "run.dir")
    words = overrides(scenes, tmp_path / "run", "checkpoint.mirror=nowhere://bucket/run")
    assert_only(problems(words), "checkpoint.mirror", "nowhere")


@pytest.mark.usefixtures("one_rank")
def test_check_and_train_warn_of_the_same_unlikely_settings(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.json").write_text('{"activation_checkpointing": {"cpu_checkpointing": true}}')
    merge([scenes / "train", scenes / "eval"], both := tmp_path / "both", 1 << 30)
    layout = "train.global_batch=400", "train.micro_batch=200", "objectives.itm_group=400"
    words = overrides(scenes, tmp_path / "run", f"data.eval={both}", *layout, "train.steps=1", "eval.every=2")
    found = check_run(TOML, words, str(tmp_path / "mine.json"), 1, False)
    warnings = [finding.sentence for finding in found.findings if finding.verdict == "warning"]
    expected = [
        "ITM's groups of 400 do not fit in the 200 pairs computed at once and cost 40 to 70 % more computing",
        "mine.json: activation_checkpointing is not used: train.recompute",
        f"data.eval's {both} has 251 of its 300 rows from data.train's {scenes}/train:",
        "train.global_batch 400 is more than the 251 rows of an epoch: each step sees every row 1.59 times",
        "eval.every is 2 and the run has 1 step",
    ]
    assert [part in sentence for part, sentence in zip(expected, warnings, strict=True)] == [True] * len(expected)
    assert not found.problems
    assert train(load_config(TOML, words), (str(tmp_path / "mine.json"), TOML), given_keys(TOML, words)) == 0
    said = capsys.readouterr().err
    assert [f"warning: {sentence}" in said for sentence in warnings] == [True] * len(expected)


def warnings_of(words: list[str]) -> list[str]:
    found = check_run(TOML, words, JSON, 1, False)
    return [finding.sentence for finding in found.findings if finding.verdict == "warning"]


def test_an_evaluation_without_data_is_a_warning(scenes: Path, tmp_path: Path) -> None:
    assert warnings_of(overrides(scenes, tmp_path / "run", "eval.every=2", "data.eval=[]", "optim.warmup_steps=2")) == [
        "eval.every is 2 and no data.eval is named: nothing is evaluated; name held-out shards."
    ]


def test_a_warm_up_that_takes_all_steps_is_a_warning(scenes: Path, tmp_path: Path) -> None:
    assert warnings_of(overrides(scenes, tmp_path / "run")) == [
        "The warm-up takes all 4 steps of the run, whose learning rate only rises: lower optim.warmup_epochs, or "
        "optim.warmup_steps if that is set."
    ]


@pytest.mark.parametrize(("decay", "count"), [(2, 0), (3, 1)])
def test_a_warm_up_that_reaches_into_the_decay_is_a_warning(
    scenes: Path, tmp_path: Path, decay: int, count: int
) -> None:
    words = ["optim.warmup_steps=2", "optim.schedule=wsd", f"optim.decay_steps={decay}"]
    sentence = (
        "The warm-up leaves 2 of the 3 steps in which optim.decay_steps decays: lower optim.warmup_epochs, or "
        "optim.warmup_steps if that is set."
    )
    assert warnings_of(overrides(scenes, tmp_path / "run", *words)) == [sentence] * count


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in fp16")
def test_a_precision_that_this_machine_lacks_is_not_reported_as_right(scenes: Path, tmp_path: Path) -> None:
    """Training refuses it here, but the nodes of the run may have it."""
    words = overrides(scenes, tmp_path / "run")
    found = check_run(TOML, words, str(ROOT / "ds_configs/fp16.json"), 1, False)
    assert [(f.verdict, f.sentence) for f in found.findings if f.topic == "deepspeed"] == [
        (
            "unknown",
            f"{ROOT}/ds_configs/fp16.json enables fp16, which cpu cannot compute: start the run on a machine that can.",
        )
    ]


BEFORE_TORCH = """
import sys
from mvlm.__main__ import main
from mvlm.check.reading import read_run
from mvlm.check.report import Report
json = ["--deepspeed_config", "ds_configs/cpu.json"]
toml = "mvlm/configs/tiny.toml"
codes = [
    main(["train", "nowhere.toml", *json]),
    main(["train", toml, "--deepspeed_config", "nowhere.json", "data.train=nowhere"]),
    main(["train", toml, *json, "data.train=nowhere"]),
    main(["train", toml, *json, "data.train=" + sys.argv[1], "data.eval=nowhere"]),
    main(["check", "nowhere.toml", *json]),
]
printed = []
read_run(Report("check", printed.append), toml, ["data.train=nowhere"], json[1], False)
assert codes == [1] * 5 and any("No shards at nowhere" in line for line in printed), (codes, printed)
assert not {"torch", "transformers", "deepspeed"} & sys.modules.keys()
"""


def test_a_wrong_path_is_reported_before_torch_is_imported(scenes: Path) -> None:
    ended = run_command([sys.executable, "-c", BEFORE_TORCH, str(scenes / "train")])
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("nowhere") == 4


def test_findings_are_printed_as_they_are_made() -> None:
    printed: list[str] = []
    report = Report("check", printed.append)
    for number in range(SHOWN + 3):
        report.wrong("data", f"{number} is broken: mend it.")
        assert len(printed) == min(number + 1, SHOWN)
    report.wrong("toml", "0 is broken: mend it.")  # known already
    report.right("model", "It can be built.")
    assert printed[-1] == "right    model      It can be built."
    assert report.closing().splitlines() == [
        "wrong    data       3 more of this kind, which --json lists.",
        f"check: 1 right, {SHOWN + 3} wrong, 0 warning, 0 unknown",
    ]


def test_shards_without_checksums_of_texts_are_reported(scenes: Path, tmp_path: Path) -> None:
    def unknown() -> list[str]:
        report = Report("check")
        check_corpus(report, load_config(TOML, TINY), str(old), deep=False)
        assert report.problems == []
        return [finding.sentence for finding in report.findings if finding.verdict == "unknown"]

    old = shutil.copytree(scenes / "train", tmp_path / "old")
    assert unknown() == []
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["indexes"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    (sentence,) = unknown()
    assert "texts of 1 of 1 shards are not checked" in sentence and "row-index" in sentence


def test_copies_that_do_not_fit_into_shared_memory_are_a_warning() -> None:
    config, report = load_config(TOML, ["checkpoint.mirror=memory://run", "checkpoint.peers=1"]), Report("check")
    check_memory(report, config, 1, 1)
    check_memory(report, config, 10**15, 2)
    check_memory(report, load_config(TOML, []), 10**15, 2)
    assert [finding.verdict for finding in report.findings] == ["right", "warning"]
    assert "checkpoint.peers has no room: a rank's copies take 6e+06 GB of /dev/shm" in report.findings[1].sentence
