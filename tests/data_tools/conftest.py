from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made import run, write_captions, write_folder

from data_tools.__main__ import main


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """A function that writes images, given by id, as a new source folder."""

    def write(images: dict[str, bytes]) -> Path:
        target = tmp_path / f"in{len(list(tmp_path.glob('in*')))}"
        (target / "images").mkdir(parents=True)
        for name, data in images.items():
            (target / "images" / name).write_bytes(data)
        lines = [{"id": name, "image": f"images/{name}", "caption": "some words here"} for name in images]
        write_captions(target, lines)
        return target

    return write


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus of 12 records in several shards."""
    write_folder(tmp_path / "in", 12)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", "--shard-mb", 0.005, "--workers", 1)
    return tmp_path / "out"


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a command, which must exit with 1 and print one line to stderr, and returns that line."""

    def failed(*argv: Any) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in argv]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert "Traceback" not in error
        return error

    return failed
