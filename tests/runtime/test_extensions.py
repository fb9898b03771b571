"""Compilations of torch's that were killed hold nobody up, and living ones are waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mvlm.runtime import extensions
from mvlm.runtime.extensions import wait_for_compilations

COMPILATION = """
import sys, time
from torch.utils.file_baton import FileBaton
baton = FileBaton(sys.argv[1])
assert baton.try_acquire()
print("compiling", flush=True)
time.sleep(float(sys.argv[2]))
baton.release()
"""


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an extension that has not been compiled yet."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "cpu_adam").mkdir()
    return tmp_path / "cpu_adam"


@contextmanager
def compilation(folder: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process that holds torch's lock of an extension, as one that compiles it does."""
    words = [sys.executable, "-c", COMPILATION, str(folder / "lock"), str(seconds)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "compiling\n"
        try:
            yield process
        finally:
            process.kill()


def age(folder: Path, seconds: float) -> None:
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - seconds,) * 2)


def test_the_lock_of_a_killed_compilation_is_removed(extension: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with compilation(extension, 600) as process:
        process.kill()
    assert (extension / "lock").exists()
    age(extension, extensions.QUIET_SECONDS + 1)
    wait_for_compilations({"fused_adam"})
    assert (extension / "lock").exists()  # of another extension
    wait_for_compilations({"cpu_adam"})
    assert not (extension / "lock").exists()
    assert f"Removed {extension}/lock" in capsys.readouterr().err


def test_what_may_be_compiled_on_another_machine_is_waited_for(
    extension: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extensions, "QUIET_SECONDS", 2.0)
    (extension / "lock").touch()
    age(extension, 60)
    (extension / "cpu_adam.o").touch()  # has just been made
    began = time.monotonic()
    wait_for_compilations({"cpu_adam"})
    assert time.monotonic() - began > 1.5 and not (extension / "lock").exists()


def test_a_compilation_here_is_waited_for_however_long_it_is_quiet(
    extension: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with compilation(extension, 1.5) as process:
        age(extension, extensions.QUIET_SECONDS + 1)
        wait_for_compilations({"cpu_adam"})
        assert process.wait(10) == 0  # it has removed its lock itself, which fails where another has
    said = capsys.readouterr().err
    assert f"Waiting for {extension}/lock" in said and "Removed" not in said
