"""Commands on an index, as functions."""

import json

import pytest

from mvlm.__main__ import main


@pytest.fixture
def mistake(capsys):
    """mistake(*words) -> the sentence with which a command fails."""

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
