"""What is written to standard error, and by which rank."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console
from rich.progress import Progress

from mvlm.runtime.log import log, rank_log
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        ("0", "mvlm: All are here.\nmvlm: The disk is full.\n"),
        ("3", "mvlm: rank 3: The disk is full.\n"),
    ],
)
def test_rank_0_speaks_for_all_and_others_for_themselves(
    rank: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    log.info("All are here.")
    rank_log.warning("The disk is full.")
    assert capsys.readouterr().err == said


def test_no_other_logger_repeats_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    root, again = logging.getLogger(), logging.StreamHandler()
    root.addHandler(again)
    try:
        log.info("It can be 100 % full.")
    finally:
        root.removeHandler(again)
    assert capsys.readouterr().err == "mvlm: It can be 100 % full.\n"


def test_a_progress_bar_is_not_torn() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60)
    with Progress(console=console, auto_refresh=False) as bar:
        bar.add_task("train", total=2)
        bar.refresh()
        log.info("Half of it is done.")
    lines = screen.getvalue().splitlines()
    assert any("mvlm: Half of it is done." in line and "train" not in line.split("mvlm:")[1] for line in lines), lines


DIRECT = {
    "mvlm/__main__.py",  # drops what can no longer be written
    "mvlm/check/nodes/rollcall.py",  # ends a process whose main thread is stuck
    "mvlm/cli/check.py",  # what libraries print when they are imported
    "mvlm/cli/evaluate.py",  # where a requested file is
    "mvlm/cli/train.py",  # names its rank, even rank 0
    "mvlm/runtime/launch.py",  # flushes before a rank ends
    "mvlm/runtime/log.py",
    "mvlm/runtime/output.py",  # the same
    "mvlm/search/build.py",  # a progress bar
    "mvlm/training/logging/monitor.py",  # another
}
"""Files that write to standard error without `logging`; the watchdog writes to the descriptor itself."""


def test_everything_else_is_logged() -> None:
    sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "mvlm").rglob("*.py")}
    assert {name for name, source in sources.items() if "sys.stderr" in source or "stderr=True" in source} == DIRECT
