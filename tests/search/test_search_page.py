"""Every command of docs/search.md, in order, on small data."""

import json
import re
import shlex

from mvlm.__main__ import main
from mvlm.data.images.decode import load_image
from mvlm.data.shards.mixture import Mixture
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^mvlm .*", PAGE, re.MULTILINE)


def test_every_command_runs(trained, scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").symlink_to(scenes)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").symlink_to(trained)
    (tmp_path / "pictures").mkdir()
    load_image(Mixture([scenes / "eval"]).row(0).image).save("pictures/scene.png")
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        assert main(shlex.split(command)[1:]) == 0, (command, capsys.readouterr().err)
    said = capsys.readouterr().out
    assert "corpus.index: 300 images, embedded with the weights of step 12." in said
    assert said.count("red circle top left\n  similarity") == 2
    assert len(list((tmp_path / "found").iterdir())) == 10
    assert len(json.loads((tmp_path / "found.json").read_text())["found"]) == 5
