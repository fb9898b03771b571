"""Every command of docs/downstream.md, in its order, on small data."""

import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from data_tools.__main__ import main as data_tools
from mvlm.__main__ import main as mvlm
from tests.conftest import ROOT, TINY

PAGE = (ROOT / "docs" / "downstream.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SMALLER = {"6000": "400", "4000": "160", "400": "20", "width >= 224 and source = 'coco'": "width >= 16"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to run the commands in, with the pictures and files that the page mentions."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("examples", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("red_circle", "blue_star"):
            (folder / "pictures" / part / name).mkdir(parents=True)
            for number in range(3):
                picture = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
                picture.save(folder / "pictures" / part / name / f"{number}.png")
    picture.save(folder / "pictures" / "scene.png")
    (folder / "templates.txt").write_text("{} top left\na {}\n")
    (folder / "sentences.txt").write_text("red circle top left\n\nblue star\n")
    return folder


def run(words):
    """Run a command in this process, training with a tiny model for two steps."""
    match words:
        case ["python", "-m", "data_tools", *rest]:
            return data_tools([SMALLER.get(word, word) for word in rest])
        case ["mvlm", *rest]:
            return mvlm([SMALLER.get(word, word) for word in rest])
        case ["deepspeed", "--module", "mvlm", *rest]:
            return mvlm(
                [*rest, *TINY, "train.steps=2", "train.global_batch=8", "eval.rerank=4", "task.answer_minimum=3"]
            )
    raise AssertionError(f"the page has a command that no test knows how to run: {words}")


@pytest.mark.campaign
def test_every_command_runs(one_rank, own_signals, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for command in COMMANDS:
        assert run(shlex.split(command)) == 0, (command, capsys.readouterr().err)
    said = capsys.readouterr().out
    for sentence in ("Mean recall is that of", "zero-shot: a class is", "L2 penalties", "true one scores higher"):
        assert sentence in " ".join(said.split())
    assert len(list((place / "drawn").iterdir())) == 6 + 1 + 1 + 1, "a picture for each question"
    best = json.loads((place / "best.json").read_text())
    assert [answer["sentence"] for answer in best["answers"][0]["sentences"]] != []
    judged = json.loads((place / "judged.json").read_text())["answers"][0]["answers"]
    assert sum(each["probability"] for each in judged) == pytest.approx(1)
    assert json.loads((place / "foils.json").read_text())["rows"] == 20
