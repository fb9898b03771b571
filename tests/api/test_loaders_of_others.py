"""Our loader in the training loops of other libraries: both examples run to the end."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import ModuleType

import pytest

import mvlm
from tests.conftest import ROOT
from tests.scripts import load_script
from tests.tars import add_file

pytestmark = pytest.mark.campaign


@pytest.fixture
def tars(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Scenes as webdataset's tar files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = mvlm.open(scenes / "train")[:96]
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for row in rows[number * 48 : number * 48 + 48]:
                for ending, content in (("png", row.encoded), ("txt", row.captions[0].encode())):
                    add_file(tar, f"{row.key}.{ending}", content)
    return str(tmp_path / "?.tar")


def example(name: str) -> ModuleType:
    return load_script(ROOT / f"examples/loaders/{name}.py")


def test_open_clip_trains_in_its_own_loop(tars: str) -> None:
    pytest.importorskip("open_clip")
    losses = example("open_clip_training").main([tars, "--batch", "16", "--epochs", "3"])
    assert len(losses) == 4 and losses[-1] < losses[0]


def test_a_trainer_resumes_in_the_middle_of_an_epoch(tars: str) -> None:
    """With the losses of an uninterrupted run."""
    pytest.importorskip("accelerate")
    trainer = example("transformers_trainer")
    whole = trainer.main([tars, "--batch", "16", "--epochs", "2", "--out", "whole"])
    again = trainer.main([tars, "--batch", "16", "--epochs", "2", "--out", "again", "--resume", "whole/checkpoint-3"])
    assert len(whole) == 12
    assert again[-9:] == pytest.approx(whole[3:], rel=1e-5)
