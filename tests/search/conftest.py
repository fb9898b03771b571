"""A run as training leaves it, and an index of a corpus by it."""

import json

import pytest

from mvlm.__main__ import main
from tests.conftest import TINY, mvlm_command, run_command


@pytest.fixture(scope="session")
def trained(scenes, tmp_path_factory):
    """A run of a few steps on `scenes`; sentences and pictures matter to each other from the start."""
    run = tmp_path_factory.mktemp("trained") / "run"
    words = [f"data.train={scenes / 'train'}", f"data.eval={scenes / 'eval'}", f"run.dir={run}", "train.steps=12"]
    words += [
        "data.vocabulary=512",
        "model.cross_init_std=0.3",
        "train.global_batch=32",
        "optim.lr=0.003",
        "optim.encoder_lr=0.003",
    ]
    command = ["train", "mvlm/configs/tiny.toml", "--deepspeed_config", "ds_configs/cpu.json", *TINY, *words]
    done = run_command(mvlm_command(*command, "eval.every=0", launcher=False))
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def index(trained, scenes, tmp_path_factory):
    """Both parts of `scenes`, the held-out one first."""
    out = tmp_path_factory.mktemp("indexed") / "index"
    words = ["index", str(scenes / "eval"), str(scenes / "train"), "--checkpoint", str(trained), "--out", str(out)]
    assert main(words) == 0
    return out


@pytest.fixture
def said(capsys):
    """said(*words) -> the sentence of a command that fails."""

    def run(*words):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.endswith(".\n"), error
        return error

    return run


@pytest.fixture
def found(capsys, tmp_path):
    """found(*words) -> the answers that `mvlm search` writes."""

    def run(*words):
        out = tmp_path / "found.json"
        assert main(["search", *map(str, words), "--json", str(out)]) == 0, capsys.readouterr().err
        return json.loads(out.read_text())["found"]

    return run
