"""`mvlm.train`: from pictures to a model in one call, through the launcher."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import mvlm
from mvlm.api.corpus import find_shards
from mvlm.api.recipe import choose
from mvlm.api.results import DEEPSPEED, RECIPE, RunFolder, launch_training, write_recipe
from mvlm.config.load import load_config
from mvlm.config.toml import apply_override
from mvlm.errors import UserError
from mvlm.runtime.commands import run_command
from tests.api.wheel import Installed, install
from tests.conftest import ROOT, TINY


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("wheel"))


def write_pictures(scenes: Path, out: Path) -> None:
    """Scenes as users have pictures, with a text file beside each."""
    out.mkdir()
    for number, row in enumerate(mvlm.open(scenes / "train")[:80]):  # with keys other than those in the shards
        (out / f"{number}.png").write_bytes(row.encoded)
        (out / f"{number}.txt").write_text("\n".join(row.captions))


SMALL: dict[str, Any] = {}
for word in TINY:
    apply_override(SMALL, word)
SMALL = {f"{table}.{key}": value for table, keys in SMALL.items() for key, value in keys.items()}
SMALL["model.vision_args"] = {"embed_dim": 32}  # of the patch dictionary that the recipe makes

THREE_LINES = """
import json, sys
import mvlm

run = mvlm.train("pictures", out="run", settings=json.loads(sys.argv[1]))
model = run.load("cpu")
print("similarity", model.similarity([row.image for row in mvlm.open("run/shards/eval")], "a star").shape)
print("retrieval of step", run.evaluation["step"], "report", run.report.is_file())
print("steps", [line["step"] for line in run.metrics])
"""


def test_a_wheel_trains_in_three_lines(environment: Path, scenes: Path, tmp_path: Path) -> None:
    """Outside the checkout, as for a user who has installed the package."""
    wheel = Installed(environment, tmp_path)
    write_pictures(scenes, tmp_path / "pictures")
    said = wheel.run("python", "-c", THREE_LINES, json.dumps(SMALL | {"train.steps": 2}))
    assert "train.global_batch = 64" in said and "step 2 " in said
    assert "retrieval of step 2 report True" in said and "steps [1, 2]" in said and "similarity torch.Size([" in said


@pytest.mark.campaign
def test_the_same_call_resumes(scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_pictures(scenes, tmp_path / "pictures")
    for steps in (2, 3):
        run = mvlm.train(tmp_path / "pictures", tmp_path / "run", SMALL | {"train.steps": steps})
        assert [line["step"] for line in run.metrics] == [*range(1, steps + 1)]
    assert capfd.readouterr().out.count("step 1 ") == 1


@pytest.mark.campaign
def test_a_moved_run_is_resumed_at_its_new_place(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was started from another working directory, and moved together with its shards."""
    write_pictures(scenes, tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    mvlm.train("pictures", "begun", SMALL | {"train.steps": 1})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "begun").rename(tmp_path / "moved")
    run = mvlm.train("../pictures", "../moved", SMALL | {"train.steps": 2})
    assert [line["step"] for line in run.metrics] == [1, 2] and "Resuming step_00000001" in capfd.readouterr().out
    assert not (tmp_path / "begun").exists() and not list((tmp_path / "elsewhere").iterdir())


ENDLESS = """
import json, signal, sys
import mvlm

signal.signal(signal.SIGINT, signal.default_int_handler)
mvlm.train(sys.argv[2], out=sys.argv[3], settings=json.loads(sys.argv[1]))
"""


@pytest.mark.campaign
def test_ctrl_c_saves_and_says_how_to_resume(scenes: Path, tmp_path: Path) -> None:
    write_pictures(scenes, tmp_path / "pictures")
    settings = json.dumps(SMALL | {"train.steps": 100_000, "log.every": 1})
    words = [sys.executable, "-c", ENDLESS, settings, str(tmp_path / "pictures"), str(tmp_path / "run")]
    caller = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, process_group=0)
    try:
        assert caller.stdout
        for line in caller.stdout:
            if line.startswith("step 3 "):
                assert line.rstrip().endswith(" left")
                break
        os.killpg(caller.pid, signal.SIGINT)  # as a terminal does
        said = caller.communicate()[0]
    finally:
        caller.kill()
    assert re.search(r"Stopped; \S+/run/checkpoints/step_\d+ is saved, and the same call resumes from there", said)
    saved = RunFolder(tmp_path / "run").metrics[-1]["step"]
    run = mvlm.train(tmp_path / "pictures", tmp_path / "run", SMALL | {"train.steps": saved + 1, "log.every": 1})
    assert [line["step"] for line in run.metrics if "loss" in line] == [*range(1, saved + 2)]


@pytest.mark.campaign
def test_the_launcher_starts_several_ranks(scenes: Path, tmp_path: Path) -> None:
    """One per GPU; here they are processes on the CPU."""
    corpus, run = find_shards(scenes), tmp_path / "run"
    assert corpus
    write_recipe(run, choose(corpus.images, corpus.train, corpus.eval, run, 0), "A test.")
    launch_training(str(run / RECIPE), str(run / DEEPSPEED), [*TINY, "train.steps=2"], 2)
    assert json.loads((run / "run.json").read_text())["world"] == 2
    assert RunFolder(run).metrics[-1]["step"] == 2


@pytest.mark.campaign
def test_a_wheel_has_recipes_jobs_and_tools_only_under_its_own_name(
    environment: Path, scenes: Path, tmp_path: Path
) -> None:
    wheel = Installed(environment, tmp_path)
    top = {path.name for path in (wheel.environment / "lib").glob("python3*/site-packages/*")}
    assert {name for name in top if not name.endswith((".dist-info", ".pth"))} <= {"mvlm", "__pycache__"}
    built = {path.name for path in (wheel.environment / "lib").glob("python3*/site-packages/mvlm/data/*/*.so")}
    assert built == {"_native.abi3.so", "_rows.abi3.so"}  # the same for all versions of Python
    assert "No module named" in wheel.run("python", "-c", "import data_tools", fails=True)
    assert "0 wrong" in wheel.run("mvlm", "check", "tiny", "--deepspeed_config", "cpu", f"data.train={scenes}/train")
    assert "intact" in wheel.run("mvlm-data", "verify", scenes / "train", "--workers", 1)
    script = wheel.run("mvlm-cluster", "render", "local.toml", "--on", "slurm", f"data.train={scenes}/train")
    assert "-m mvlm.cluster.rank" in script and f"PATH={wheel.environment}/bin" in script
    shards = wheel.run("mvlm-cluster", "render", "shards.toml", "--on", "slurm")
    assert "-m mvlm.data_tools shard" in shards and "-m data_tools" not in shards
    assert "-m mvlm.cluster.ray.parts" in wheel.run(
        "mvlm-cluster", "render", "scores.toml", "--on", "ray", "score.time=", "score.partition="
    )
    loaded = (
        "import mvlm.data_tools.__main__, sys; print([name for name in sys.modules if name.startswith('data_tools')])"
    )
    assert wheel.run("python", "-c", loaded).strip() == "[]"


def test_extras_have_the_version_ranges_of_the_requirements() -> None:
    """They are repeated because pip reads only one of the two."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = {line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert {*extras["ray"], *extras["serve"]} <= lines


def test_notebooks_get_no_progress_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    bars = "from rich.progress import track\nfor _ in track(range(3)): pass\nprint('done')"
    run_command([sys.executable, "-c", bars])
    out = capsys.readouterr().out
    assert "done" in out and "\x1b" not in out


def test_a_wrong_argument_is_refused_before_anything_is_launched(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has run\.dir, which is `out`"):
        mvlm.train(scenes, out=tmp_path / "run", settings={"run.dir": str(tmp_path / "other")})
    with pytest.raises(UserError, match="`settings` is a list: give a dict"):
        mvlm.train(scenes, out=tmp_path / "run", settings=["train.steps=3"])
    with pytest.raises(UserError, match=r"train\.step.*train\.steps"):
        mvlm.train(scenes, tmp_path / "run", {"train.step": 3})
    for value in (None, {"vision"}):
        with pytest.raises(UserError, match="cannot be a setting: give a number"):
            mvlm.train(scenes, tmp_path / "run", {"log.wandb": value})
    with pytest.raises(UserError, match="'' cannot be `out`: give a path"):
        mvlm.train(scenes, "")
    with pytest.raises(UserError, match="path of the data is empty"):
        mvlm.train("", tmp_path / "run")
    for pairs in ([("bus.jpg", "a bus")], iter([]), None):
        with pytest.raises(UserError, match=r"not as a .* a table with the columns image and caption"):
            mvlm.train(pairs, tmp_path / "run")
    for out in (" ", None):
        with pytest.raises(UserError, match=f"{out!r} cannot be `out`: give a path"):
            mvlm.finetune(tmp_path / "run", "vqa", scenes, out=out)
    with pytest.raises(UserError, match="None cannot be `model`: give a path"):
        mvlm.finetune(None, "vqa", scenes, tmp_path / "run")


@pytest.mark.parametrize("images", [2, 500, 200_000, 5_000_000])
@pytest.mark.parametrize("gpus", [0, 8])
def test_the_chosen_recipe_is_a_valid_configuration(tmp_path: Path, images: int, gpus: int) -> None:
    dictionary = tmp_path / "dictionary.safetensors"
    chosen = choose(images, ["shards/train"], ["shards/eval"], tmp_path / "run", gpus, dictionary)
    (tmp_path / "recipe.toml").write_text(chosen.text("A test."))
    config = load_config(tmp_path / "recipe.toml")
    assert config.data.train == ("shards/train",) and config.train.global_batch <= max(images, 2)
    assert config.train.epochs * images / config.train.global_batch >= 599
    assert (config.model.vision_weights == str(dictionary)) == (images <= 200_000 and not gpus)


def test_shards_are_found_with_and_without_splits(scenes: Path) -> None:
    found = find_shards(scenes)
    assert found and found.train == (str(scenes / "train"),) and found.eval == (str(scenes / "eval"),)
    alone = find_shards(scenes / "eval")
    assert alone and alone.train == (str(scenes / "eval"),) and alone.eval == ()
