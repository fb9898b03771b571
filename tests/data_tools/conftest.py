from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from data_tools.__main__ import main


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must exit with 1 and one line on stderr, and return that line."""

    def run(*argv: Any) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in argv]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert "Traceback" not in error
        return error

    return run
