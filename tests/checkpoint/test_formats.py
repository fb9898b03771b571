"""Checkpoints of earlier formats, whose parameters had other names, and of later formats."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from mvlm.__main__ import main
from mvlm.checkpoint.layout import EMA, MOMENTS, WEIGHTS, find_checkpoint
from mvlm.checkpoint.tensors import open_tensors
from mvlm.config.load import load_config
from mvlm.config.parameters import FORMAT, RENAMED, present_name
from mvlm.errors import UserError
from mvlm.training.checkpoint.resume import Start
from mvlm.training.fit.settings import resume_config
from tests.training.conftest import KEPT

OLD = find_checkpoint(KEPT / "zero2")


@pytest.mark.parametrize("kind", [WEIGHTS, MOMENTS, EMA])
def test_old_tensors_get_their_present_names_and_keep_their_values(kind: str) -> None:
    stored = {}
    for path in OLD.glob(f"{kind}-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with open_tensors(OLD, kind) as files:
        assert set(files) == {name.replace("word_head.", "mlm_head.") for name in stored} != set(stored)
        for old, tensor in stored.items():
            name = old.replace("word_head.", "mlm_head.")
            assert files[name].tensor().equal(tensor) and files[name].shape == tuple(tensor.shape)


def test_every_earlier_format_has_a_table_and_only_whole_names_are_replaced() -> None:
    assert list(RENAMED) == list(range(1, FORMAT))
    names = ("word_head", "word_head.classifier.bias", "word_heads.bias", "text.word_head", "mlm_head.classifier.bias")
    assert [present_name(name) for name in names] == ["mlm_head", "mlm_head.classifier.bias", *names[2:]]
    assert present_name("word_head.classifier.bias", FORMAT) == "word_head.classifier.bias"


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(OLD, tmp_path / OLD.name))
    index = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps(index | {"format": FORMAT + 1}))
    with pytest.raises(UserError, match=f"has the format {FORMAT + 1}.*update mvlm"), open_tensors(copy, WEIGHTS):
        pass


def test_a_damaged_state_is_reported_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(KEPT / "zero0", tmp_path / "run"))
    checkpoint = find_checkpoint(run)
    (checkpoint / "state.json").write_text('{"step": 3')
    with pytest.raises(UserError, match=r"state\.json is damaged \(JSONDecodeError: .*use another checkpoint"):
        resume_config(load_config(KEPT / "run.toml"), frozenset(), Start(checkpoint, resumes=True, own=False))
    assert main(["stage", "show", str(run)]) == 1
    assert f"{checkpoint / 'state.json'} is damaged" in capsys.readouterr().err


def test_a_part_to_freeze_may_be_given_by_its_earlier_name() -> None:
    config = load_config(KEPT / "run.toml", ['train.freeze=["word_head", "vision"]'])
    assert config.train.freeze == ("mlm_head", "vision")
