"""Words that people type by habit, and keys that they look up, as they meet them on the command line."""

from __future__ import annotations

import json
import tomllib

import pytest

from mvlm.__main__ import main
from mvlm.config.describe import json_schema, run_keys
from tests.conftest import ROOT

TRAIN = ("train", "run.toml", "--deepspeed_config", "ds.json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evalute", "retrieval"), "no command 'evalute': did you mean evaluate?"),
        (("fly",), "no command 'fly': see --help."),
        ((*TRAIN, "--train.steps", "10"), "no option --train.steps: settings have no dashes, write train.steps=10."),
        ((*TRAIN, "--train.steps=10"), "write train.steps=10."),
        ((*TRAIN, "--train.steps"), "write train.steps=VALUE."),
        ((*TRAIN, "--resume"), "no option --resume: a run resumes by itself; "),
        ((*TRAIN, "--batch_size", "64"), "write train.global_batch=PAIRS."),
        (("report", "runs/a", "--ouput", "x"), "no option --ouput: "),
        (("train", "run.toml", "--deepspeed_conf=ds.json", "--nothing-like"), "no option --nothing-like: see --help."),
    ],
)
def test_a_word_that_no_command_knows_gets_a_suggestion(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_key_is_explained_and_one_that_is_not_there_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "train.freeze"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("train.freeze  default []") and len(out.splitlines()) == 2
    assert main(["config", "optim"]) == 0
    assert capsys.readouterr().out.count("\noptim.") >= 8
    assert main(["config"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(run_keys()) > 100
    assert main(["config", "freeze"]) == 1
    assert "No key freeze: did you mean train.freeze?" in capsys.readouterr().err


def test_help_of_train_lists_all_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert all(f"\n  {key.name}=" in out for key in run_keys())


@pytest.mark.parametrize("recipe", sorted((ROOT / "mvlm/configs").rglob("*.toml")), ids=lambda path: path.stem)
def test_the_schema_fits_every_recipe(recipe: object, capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    content = json.loads(json.dumps(tomllib.loads(recipe.read_text())))  # type: ignore[attr-defined]
    jsonschema.validate(content, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"optim": {"lr": "high"}}, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"optim": {"learning_rate": 1.0}}, json_schema())
