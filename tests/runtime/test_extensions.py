"""Extensions that torch compiles: locks of killed compilations are removed, running ones are waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from mvlm.runtime import extensions
from mvlm.runtime.extensions import wait_for_compilations
from tests.conftest import ROOT

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
    monkeypatch.setattr(extensions, "waits_for_files", lambda: True)
    (tmp_path / "cpu_adam").mkdir()
    return tmp_path / "cpu_adam"


@contextmanager
def compilation(folder: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process that holds torch's lock on an extension, as during compilation."""
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
    assert (extension / "lock").exists()  # it belongs to another extension
    wait_for_compilations({"cpu_adam"})
    assert not (extension / "lock").exists()
    assert f"Removed {extension}/lock" in capsys.readouterr().err


def test_a_compilation_on_another_machine_is_waited_for_until_it_is_quiet(
    extension: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extensions, "QUIET_SECONDS", 2.0)
    (extension / "lock").touch()
    age(extension, 60)
    (extension / "cpu_adam.o").touch()  # just written
    began = time.monotonic()
    wait_for_compilations({"cpu_adam"})
    assert time.monotonic() - began > 1.5 and not (extension / "lock").exists()


def test_a_lock_from_the_future_is_not_waited_for(extension: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "QUIET_SECONDS", 1.0)
    (extension / "lock").touch()
    age(extension, -86_400)
    waiting = Thread(target=wait_for_compilations, args=({"cpu_adam"},), daemon=True)
    waiting.start()
    waiting.join(30)
    assert not waiting.is_alive() and not (extension / "lock").exists()


def test_a_compilation_on_this_machine_is_waited_for_however_quiet(
    extension: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with compilation(extension, 1.5) as process:
        age(extension, extensions.QUIET_SECONDS + 1)
        wait_for_compilations({"cpu_adam"})
        assert process.wait(10) == 0  # it removed its lock itself, which would fail otherwise
    said = capsys.readouterr().err
    assert f"Waiting for {extension}/lock" in said and "Removed" not in said


COMPILED = """
import sys
from torch.utils.cpp_extension import load
from mvlm.runtime.extensions import locks, wait_for_compilations

load("compiled", [sys.argv[1]], is_python_module=False)
wait_for_compilations({"compiled"})
assert locks() == []
"""


def test_a_compiled_extension_leaves_no_lock_to_wait_for(tmp_path: Path) -> None:
    """Whether or not this torch removes its lock; a lock that stayed would cost the ten minutes of a killed one."""
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    (tmp_path / "answer.cpp").write_text("int answer() { return 42; }")
    subprocess.run([sys.executable, "-c", COMPILED, tmp_path / "answer.cpp"], env=environment, check=True, timeout=300)
    assert (tmp_path / "compiled").is_dir() or list(tmp_path.glob("*/compiled"))


def test_a_torch_with_locks_that_the_system_frees_is_recognised(tmp_path: Path) -> None:
    for name, source, waits in (("old", "baton = FileBaton(path)", True), ("new", "with FileLock(path):", False)):
        (tmp_path / name / "torch/utils").mkdir(parents=True)
        (tmp_path / name / "torch/__init__.py").touch()
        (tmp_path / name / "torch/utils/cpp_extension.py").write_text(source)
        program = "from mvlm.runtime.extensions import waits_for_files as asked; print(asked())"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / name), str(ROOT)])}
        said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert said.stdout == f"{waits}\n", said.stderr
