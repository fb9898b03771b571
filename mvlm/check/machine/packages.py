"""Probes of Python, and of the packages that requirements.txt asks for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import mvlm
from mvlm.check.folders import Folders
from mvlm.check.report import Finding, broken, works
from mvlm.runtime.imports import installed

LEAST_PYTHON = (3, 11)  # as in pyproject.toml
REQUIREMENTS = Path(mvlm.__file__).parents[1] / "requirements.txt"


def find(folders: Folders) -> Iterator[Finding]:
    yield _python()
    wanted = requirements()
    problems = {one.name: problem for one in wanted if (problem := _problem(one))}
    versions = {one.name: found for one in wanted if (found := installed(one.name))}
    for name, (says, pip) in problems.items():
        yield broken("packages", says, f"python -m pip install {pip}", {"package": name})
    if not problems:
        yield works("packages", f"{len(wanted)} packages have the required versions", facts=versions)


def requirements() -> list[Requirement]:
    """Those of the source tree or, without one, of the installed package."""
    if REQUIREMENTS.is_file():
        lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    else:
        lines = metadata.requires("mvlm") or []
    wanted = [Requirement(line) for line in lines if line]
    return [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return broken("python", f"Python {version} is too old", f"make the environment with {least} or newer")
    return works("python", f"Python {version} at {sys.executable}", facts={"version": version})


def _problem(wanted: Requirement) -> tuple[str, str] | None:
    """What is wrong with a package, or with those that its extras need, and what to give pip; None if nothing is."""
    pip = f"'{wanted.name}{_extras(wanted)}{wanted.specifier}'"
    found = installed(wanted.name)
    if not found:
        return f"{wanted.name} is not installed", pip
    if not wanted.specifier.contains(found, prereleases=True):
        return f"{wanted.name} {found} is installed, but {wanted.specifier} is required", pip
    for extra in sorted(wanted.extras):
        for line in metadata.requires(wanted.name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                continue  # needed without extras too, which pip has seen to
            if needed.marker.evaluate({"extra": extra}) and not installed(needed.name):
                return f"{wanted.name} lacks {needed.name}, which its extra {extra!r} needs", pip
    return None


def _extras(wanted: Requirement) -> str:
    return f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
