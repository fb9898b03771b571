"""docs/exit_codes.md lists the exit codes of the code, and the commands use them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

import pytest

import cluster.__main__ as cluster_main
import data_tools.__main__ as data_main
import mvlm.__main__ as mvlm_main
from mvlm.cli import kernels
from mvlm.errors import DataLost, ExitCode, StorageLost, UserError
from mvlm.runtime.rendezvous import RanksApart
from tests.conftest import ROOT

TABLE = {
    int(code): words
    for code, words in re.findall(
        r"^\| (\d+) \| ([^|]+) \|", (ROOT / "docs/exit_codes.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
}


def test_the_page_lists_every_exit_code() -> None:
    assert {*ExitCode} == TABLE.keys()
    assert f"{ExitCode.REQUEUE}" == "75" and json.dumps(ExitCode.REQUEUE) == "75"  # as scripts and job.json need them


def test_codes_mean_the_same_everywhere() -> None:
    assert ExitCode.REQUEUE == DataLost.exit_code == StorageLost.exit_code == RanksApart.exit_code
    assert UserError.exit_code == ExitCode.MISTAKE
    for code, word in {0: "done", 1: "mistake", 2: "usage", 70: "bug", 75: "saved", 130: "Ctrl-C"}.items():
        assert word in TABLE[code]


def raising(error: BaseException) -> Callable[..., int]:
    def run(*args: object) -> int:
        raise error

    return run


@pytest.mark.parametrize(("error", "code"), [(UserError("Bad: mend it."), 1), (RuntimeError("bug"), 70)])
@pytest.mark.parametrize("program", ["mvlm", "data_tools", "cluster"])
def test_an_error_ends_with_its_exit_code(
    program: str, error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(program, raising(error), monkeypatch) == code


@pytest.mark.parametrize("program", ["mvlm", "data_tools", "cluster"])
def test_several_mistakes_are_a_line_each(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(program, raising(UserError("Bad: mend it.", "Worse: leave it.")), monkeypatch) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(": Bad: mend it.") and second.endswith(": Worse: leave it.")


@pytest.mark.parametrize("program", ["mvlm", "data_tools", "cluster"])
def test_ctrl_c_exits_with_130(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(program, raising(KeyboardInterrupt()), monkeypatch) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("main", [mvlm_main.main, data_main.main, cluster_main.main])
def test_wrong_usage_exits_with_2(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["no-such-command"])
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def _run(program: str, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a program in which `command` replaces one of its commands."""
    monkeypatch.setattr(sys, "argv", [program])
    if program == "mvlm":
        monkeypatch.setattr(kernels, "run", command)
        return mvlm_main.main(["kernels"])
    if program == "data_tools":
        monkeypatch.setattr(data_main, "complete", command)
        return data_main.main(["completion", "bash"])
    monkeypatch.setattr(cluster_main, "_completion", command)
    return cluster_main.main(["completion", "bash"])
