"""A run as `mvlm train` leaves it after three steps, with captions that a page must escape."""

import json
import re
import shutil
from functools import partial

import pytest

from mvlm.__main__ import main
from tests.conftest import TINY
from tests.evaluate.tiny import CAPTIONS, make_shards
from tests.ranks import mvlm, run_ranks

HOSTILE = "<script>alert('red')</script> & a \"red\" dog"


@pytest.fixture(scope="session")
def eval_shards(made_once):
    return made_once("held_out", partial(make_shards, captions=[[HOSTILE], *CAPTIONS], size=32)) / "shards"


@pytest.fixture(scope="session")
def trained(scenes, eval_shards, made_once):
    return made_once("a<b>run", partial(train_on, scenes, eval_shards))


def train_on(scenes, eval_shards, run):
    words = [f"data.train={scenes / 'train'}", f"data.eval={eval_shards}", f"run.dir={run}", "train.steps=3"]
    command = ["train", "mvlm/configs/tiny.toml", "--deepspeed_config", "ds_configs/cpu.json", *words, *TINY]
    done = run_ranks(mvlm, *command)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def page(trained, tmp_path_factory):
    """The report of that run, with all its examples."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(trained), "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run, which a test may change."""
    return shutil.copytree(trained, tmp_path / trained.name)


@pytest.fixture
def bare_run(run):
    """The same without evaluation data, whose report needs no model."""
    name_data(run, "eval")
    return run


@pytest.fixture
def brief_run(bare_run):
    """The same with a single metric: a page that is read for its text need not wait for all charts."""
    lines = map(json.loads, (bare_run / "metrics.jsonl").read_text().splitlines())
    (bare_run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": line["step"], "loss": line["loss"]}) + "\n" for line in lines if "loss" in line)
    )
    return bare_run


def name_data(run, key, *paths):
    """Change the data that a run's configuration names as `train` or `eval`."""
    config = (run / "config.toml").read_text()
    listed = json.dumps([str(path) for path in paths])
    (run / "config.toml").write_text(re.sub(rf"(?m)^{key} = .*$", f"{key} = {listed}", config, count=1))


@pytest.fixture
def add_metrics():
    def add(run, *lines):
        with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)

    return add
