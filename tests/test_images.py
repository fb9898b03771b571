"""The two images of cluster/gpu are of one base and run the same commands; a linter has read the Dockerfile.

Neither is built here, for want of what builds them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCKERFILE = (ROOT / "cluster/gpu/Dockerfile").read_text(encoding="utf-8")
DEFINITION = (ROOT / "cluster/gpu/mvlm.def").read_text(encoding="utf-8")


def docker_steps() -> list[tuple[str, str]]:
    """Instruction and arguments, continued lines joined."""
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines.splitlines() if line.strip()]


def docker_commands() -> list[str]:
    """What RUN and what stands for it do, in order, each command by itself."""
    commands = []
    for name, words in docker_steps():
        if name == "ENV":
            commands.append(f"export {words}")
        if name == "WORKDIR":
            commands.append(f"cd {words}")
        if name == "RUN":
            commands += [command.strip() for command in words.split("&&")]
    return commands


def section(name: str) -> str:
    return DEFINITION.partition(f"%{name}\n")[2].partition("\n%")[0]


def test_both_run_the_same_commands() -> None:
    post = [" ".join(line.split()) for line in section("post").splitlines() if line.strip()]
    assert post[0] == "set -e"  # as && does
    assert post[1:] == docker_commands()


def test_both_begin_from_one_base_of_a_fixed_version() -> None:
    base = dict(docker_steps())["ARG"].removeprefix("BASE=")
    assert f"From: {base}\n" in DEFINITION
    assert re.search(r":\d+\.\d+\.\d+-cuda\d+\.\d+-", base)


def test_apptainer_gets_all_that_the_installation_reads() -> None:
    copied = {word for line in section("files").splitlines() for word in line.split()[:-1]}
    assert copied >= {"mvlm", "data_tools", "cluster", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in copied)


def test_requirements_are_copied_before_the_code_so_that_a_change_of_code_builds_little_again() -> None:
    copies = [words for name, words in docker_steps() if name == "COPY"]
    assert copies[0] == "requirements.txt ./" and copies[-1] == ". ."


def test_the_dockerfile_has_a_linters_approval() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("there is no hadolint")
    # DL3008 wants versions of the system's packages, which its archive keeps for weeks alone
    command = [str(hadolint), "--ignore", "DL3008", "cluster/gpu/Dockerfile"]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout
