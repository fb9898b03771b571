"""What people type out of habit, and how they look up commands, keys and versions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.__main__ import main as cluster
from data_tools.__main__ import main as data_tools
from data_tools.__main__ import parser as data_parser
from mvlm import __version__
from mvlm.__main__ import main
from mvlm.cli import evaluate, predict
from mvlm.cli.suggest import OF_DATA
from mvlm.config.describe import json_schema, run_keys
from tests.conftest import ROOT

HEAVY = ("torch", "transformers", "deepspeed", "pyarrow", "numpy", "PIL", "aiohttp", "rich", "tokenizers")
"""Packages whose import takes longer than an answer should take."""

AT_ONCE = [
    *(["evaluate", "--help"], ["evaluate", "probe", "--help"], ["predict", "--help"], ["train", "--help"]),
    *(["evaluate", task, "--checkpoint", "nope", "--data", "nope"] for task in ("retrieval", "vqa")),
    ["train", "nope.toml", "--deepspeed_config", "ds_configs/cpu.json"],
    ["train", "mvlm/configs/tiny.toml", "--deepspeed_config", "nope.json"],
    ["train", "mvlm/configs/tiny.toml", "--deepspeed_config", "ds_configs/cpu.json", "data.train=nope"],
    ["predict", "words", "--checkpoint", "nope", "--images", "nope", "--sentences", "x"],
    ["plan", "nope.toml", "--deepspeed_config", "ds_configs/cpu.json", "--gpu", "a100"],
    ["plan", "mvlm/configs/tiny.toml", "--deepspeed_config", "nope.json", "--gpu", "a100"],
    ["plan", "mvlm/configs/tiny.toml", "--deepspeed_config", "ds_configs/cpu.json", "--gpu", "nope"],
    ["plan", "mvlm/configs/tiny.toml", "--deepspeed_config", "ds_configs/cpu.json", "--gpu", "a100", "data.train=nope"],
    *(["report", "nope"], ["export", "nope", "--out", "x"], ["average", "nope", "--out", "x"], ["serve", "nope"]),
    *(
        ["index", "nope", "--checkpoint", "nope", "--out", "x"],
        ["search", "nope", "--checkpoint", "nope", "--text", "x"],
    ),
    *(["score", "nope", "--checkpoint", "nope"], ["decay", "nope", "--at", "10", "--steps", "5"]),
]
"""Commands that print their help or the name of a missing path."""

OF_DATA_AT_ONCE = [
    *(["verify", "--help"], ["stats", "nope"], ["verify", "nope"], ["row-index", "nope"], ["retry", "nope"]),
    *(["shard", "folder", "nope", "--out", "x"], ["count", "webdataset", "nope"], ["preview", "nope", "--out", "x"]),
    *(["takedown", "nope", "--list", "x"], ["merge", "nope", "--out", "x"], ["tokenizer", "nope", "--out", "x"]),
    ["split", "nope", "--split", "a=1", "--out", "x"],
]
"""The same for mvlm-data."""

IMPORTED_BY = """
import json, sys
from importlib import import_module

program, heavy, commands = json.loads(sys.argv[1])
main = import_module(f"{program}.__main__").main
for words in commands:
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    imported = [name for name in heavy if name in sys.modules]
    print(json.dumps([words, code, imported]), file=sys.stderr)
"""

TRAIN = ("train", "run.toml", "--deepspeed_config", "ds.json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evalute", "retrieval"), "no command 'evalute': did you mean evaluate?"),
        (("stats", "shards/mine"), "no command 'stats': did you mean mvlm-data stats?"),
        (("fly",), "no command 'fly': see --help."),
        ((*TRAIN, "--train.steps", "10"), "no option --train.steps: settings have no dashes, write train.steps=10."),
        ((*TRAIN, "--train.steps=10"), "write train.steps=10."),
        ((*TRAIN, "--train.steps"), "write train.steps=VALUE."),
        ((*TRAIN, "--run.dir", ""), "write run.dir=VALUE."),
        ((*TRAIN, "--resume"), "no option --resume: a run resumes by itself; "),
        ((*TRAIN, "--batch_size", "64"), "write train.global_batch=PAIRS."),
        (("report", "runs/a", "--ouput", "x"), "no option --ouput: "),
        (("train", "run.toml", "--deepspeed_conf=ds.json", "--nothing-like"), "no option --nothing-like: see --help."),
    ],
)
def test_an_unknown_word_gets_a_suggestion(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_commands_of_mvlm_data_are_recognised_as_such() -> None:
    choices = data_parser(described=False)._subparsers._group_actions[0].choices
    assert set(OF_DATA) == choices.keys() - {"completion"}


def test_a_key_is_explained_and_for_an_unknown_one_the_nearest_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "train.freeze"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("train.freeze  default []") and len(out.splitlines()) == 2
    assert main(["config", "optim"]) == 0
    assert capsys.readouterr().out.count("\noptim.") >= 8
    assert main(["config"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(run_keys()) > 100
    assert main(["config", "freeze"]) == 1
    assert "No key freeze: did you mean train.freeze?" in capsys.readouterr().err
    assert main(["config", "output_dir"]) == 1
    assert "No key output_dir: did you mean run.dir?" in capsys.readouterr().err


@pytest.mark.parametrize("command", [main, data_tools, cluster])
def test_every_command_has_a_version(command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.split()[1] == __version__


@pytest.mark.parametrize(("program", "command"), [("mvlm", main), ("mvlm-data", data_tools), ("mvlm-cluster", cluster)])
def test_the_help_of_every_subcommand_describes_it_and_shows_examples(
    program: str, command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            command([*words, "--help"])
        assert ended.value.code == 0
        return capsys.readouterr().out

    names = re.findall(r"^    ([a-z][a-z-]*)(?:$| )", shown(), re.MULTILINE)
    assert len(names) >= 10
    for name in names:
        out = shown(name)
        assert re.match(r"usage: [^\n]+(\n +\S[^\n]*)*\n\n[A-Z]", out), name
        assert re.search(rf"^examples:\n(  .*\n)*  .*\b{program} {name}\b", out, re.MULTILINE), name


def test_the_help_of_train_lists_all_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert all(f"\n  {key.name}=" in out for key in run_keys())


@pytest.mark.parametrize(
    "recipe",
    sorted([*(ROOT / "mvlm/configs").rglob("*.toml"), *(ROOT / "examples").glob("*.toml")]),
    ids=lambda path: path.stem,
)
def test_every_recipe_names_the_schema_and_conforms_to_it(recipe: Path) -> None:
    first = recipe.read_text().splitlines()[0]
    assert (recipe.parent / first.removeprefix("#:schema ")).samefile(ROOT / "mvlm/configs/mvlm.schema.json")
    jsonschema = pytest.importorskip("jsonschema")
    content = json.loads(json.dumps(tomllib.loads(recipe.read_text())))
    jsonschema.validate(content, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"optim": {"lr": "high"}}, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"optim": {"learning_rate": 1.0}}, json_schema())


@pytest.mark.parametrize(("program", "commands"), [("mvlm", AT_ONCE), ("data_tools", OF_DATA_AT_ONCE)])
def test_help_and_a_wrong_path_are_answered_before_heavy_imports(program: str, commands: list[list[str]]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", IMPORTED_BY, json.dumps([program, HEAVY, commands])],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    answers = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("[[")]
    assert [words for words, _, _ in answers] == commands, ended.stderr
    for words, code, imported in answers:
        assert code == (0 if "--help" in words else 1) and imported == [], words
    wrong = [words for words in commands if "--help" not in words]
    assert ended.stderr.count(" nope") >= len(wrong)


def test_each_evaluation_shows_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    from mvlm.evaluate.task import TASKS

    assert evaluate.HELP.keys() == TASKS.keys() >= set(evaluate.LABELLED)
    own = {"retrieval": "--equal-captions", "reconstruction": "--words", "probe": "--train", "vqa": "--predictions"}
    for task in own:
        with pytest.raises(SystemExit):
            main(["evaluate", task, "--help"])
        shown = capsys.readouterr().out
        assert [option for option in own.values() if option in shown] == [own[task]]


def test_help_lists_every_prediction() -> None:
    from mvlm.predict.choose import ANSWER, JUDGE
    from mvlm.predict.patches import Patches
    from mvlm.predict.search import CAPTIONS, IMAGES
    from mvlm.predict.words import MASK, Words

    assert list(predict.HELP) == [each.name for each in (CAPTIONS, IMAGES, Words(), Patches(), ANSWER, JUDGE)]
    assert MASK in predict.HELP["words"]
