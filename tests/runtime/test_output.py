"""Commands whose output cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mvlm.errors import ExitCode

NAMES = {"mvlm": "mvlm", "data_tools": "mvlm-data"}
"""How the messages of a module begin."""


@pytest.mark.parametrize("command", ["mvlm doctor", "data_tools completion bash"])
def test_a_closed_pipe_is_reported_as_neither_a_bug_nor_a_full_disk(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    module, *words = command.split()
    # Unbuffered, since a command cannot catch what fails only when the interpreter flushes at its end.
    argv = [sys.executable, "-u", "-m", module, *words]
    done = subprocess.run(argv, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert done.returncode == ExitCode.MISTAKE
    assert done.stderr.splitlines()[-1] == f"{NAMES[module]}: Standard output was closed before everything was written."
    assert "Traceback" not in done.stderr
    assert "disk" not in done.stderr


@pytest.mark.parametrize("command", ["mvlm config train.epochs", "data_tools completion bash"])
def test_output_to_a_full_disk_is_refused_in_a_sentence(command: str) -> None:
    module, *words = command.split()
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", module, *words]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == ExitCode.MISTAKE
    [sentence] = done.stderr.splitlines()
    assert (
        sentence.startswith(f"{NAMES[module]}: ")
        and "No space left on device" in sentence
        and "free some room" in sentence
    )
