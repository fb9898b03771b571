"""The package as users install it: a wheel in an environment without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and a working folder outside the checkout."""

    environment: Path
    folder: Path

    def run(self, program: str, *words: object, fails: bool = False) -> str:
        """The output of a program in the environment, including errors."""
        command = [str(self.environment / "bin" / program), *map(str, words)]
        given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ended = subprocess.run(
            command,
            cwd=self.folder,
            env=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert (ended.returncode != 0) == fails, ended.stdout
        return ended.stdout


SOURCES = ("mvlm", "data_tools", "cluster", "ds_configs", "examples")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "requirements.txt", "README.md", "LICENSE")


def install(folder: Path) -> Path:
    """Build the wheel and install it into an environment in `folder`, which shares the packages of these tests."""
    sources, environment, wheels = folder / "sources", folder / "env", folder / "wheels"
    for name in SOURCES:
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in FILES:
        shutil.copy(ROOT / name, sources / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(sources)]
    _run(build)
    _run([sys.executable, "-m", "venv", "--without-pip", str(environment)])
    into = [*pip, "--python", str(environment / "bin/python"), "install", "--quiet", "--no-deps", "--no-index"]
    _run([*into, "--no-compile", *map(str, wheels.glob("*.whl"))])
    # A .pth file makes packages importable but does not process .pth files beside them, such as that of the checkout.
    site = next(environment.glob("lib/python3*/site-packages"))
    (site / "peers.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def _run(command: list[str]) -> None:
    ended = subprocess.run(
        command, env=_outside(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stdout


def _outside() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
