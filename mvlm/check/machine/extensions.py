"""Probes of the compiler of extensions, of locks left by killed compilations, and of apex."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mvlm.check.folders import Folders
from mvlm.check.machine.devices import gpus_of_machine
from mvlm.check.report import Finding, absent, broken, works
from mvlm.errors import first_line
from mvlm.runtime.extensions import extensions_folder, locks, open_files
from mvlm.runtime.imports import installed

SOURCE = '#include <Python.h>\nextern "C" int answer() { return 40 + Py_IsInitialized() * 2; }\n'
ANSWER = 42
COMPILE_SECONDS = 45.0
NEEDS_IT = "offload to the CPU, train.compile and our JPEG decoder's installation"
GET_ONE = "install g++ and Python's headers (Debian: g++ python3-dev)"


def find_compiler(folders: Folders) -> Iterator[Finding]:
    """Try the C++ compiler: compile an extension and call it."""
    given = os.environ.get("CXX")
    command = shlex.split(given or "c++") or ["c++"]
    path = shutil.which(command[0])
    if path is None and given:
        yield broken("compiler", f"CXX={given} names no compiler", f"unset it, or {GET_ONE}")
    elif path is None and gpus_of_machine():
        says = f"There is no C++ compiler, which Triton's kernels on the GPU need, and {NEEDS_IT}"
        yield broken("compiler", says, GET_ONE)
    elif path is None:
        yield absent("compiler", f"There is no C++ compiler: {NEEDS_IT} have to do without", GET_ONE)
    elif reason := _cannot_compile(command):
        yield broken("compiler", f"{path} cannot compile a Python extension ({reason})", GET_ONE)
    else:
        yield works("compiler", f"{path} compiles a Python extension, which runs", facts={"compiler": path})


def _cannot_compile(command: list[str]) -> str | None:
    with tempfile.TemporaryDirectory(prefix="mvlm-doctor-") as folder:
        source, library = Path(folder) / "answer.cpp", Path(folder) / "answer.so"
        source.write_text(SOURCE, encoding="utf-8")
        include = sysconfig.get_path("include")
        words = [*command, "-shared", "-fPIC", f"-I{include}", str(source), "-o", str(library)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                return lines[0].rpartition("error: ")[2] if lines else f"exit code {done.returncode}"
            answer = ctypes.CDLL(str(library)).answer()
        except subprocess.TimeoutExpired:
            return f"it took more than {COMPILE_SECONDS:.0f} s"
        except (OSError, AttributeError) as error:
            return first_line(error)
    return None if answer == ANSWER else f"what it compiled answers {answer}"


def find_locks(folders: Folders) -> Iterator[Finding]:
    """torch holds a file named `lock` open while it compiles an extension, and waits forever for one left behind."""
    found = locks()
    held = open_files() if found else set()
    stale = 0
    for lock in found:
        try:
            minutes = max(0.0, time.time() - lock.stat().st_mtime) / 60
        except FileNotFoundError:
            continue  # that compilation has just ended
        if os.path.realpath(lock) in held:
            says = f"{lock.parent.name} is being compiled, for {minutes:.0f} minutes now"
            yield works("locks", says, facts={"lock": str(lock)})
            continue
        stale += 1
        says = f"{lock} was left {minutes:.0f} minutes ago by a killed compilation, and the next one waits for it"
        yield broken("locks", says, f"rm {shlex.quote(str(lock))}, unless another machine is compiling there")
    if not stale:
        yield works("locks", f"No compilation has left a lock in {extensions_folder()}")


def find_apex(folders: Folders) -> Iterator[Finding]:
    """NVIDIA's apex is recognised by its compiled part `amp_C`; the apex on PyPI is another project."""
    build = "build NVIDIA's with cluster/gpu/build_apex.sh"
    if importlib.util.find_spec("amp_C") is None:
        yield _without_amp(build)
        return
    import torch  # noqa: F401  # amp_C is linked to its libraries

    try:
        importlib.import_module("amp_C")
    except Exception as error:  # a build for another torch raises more than ImportError
        yield broken("apex", f"NVIDIA's apex does not fit this torch ({first_line(error)})", build + " again")
    else:
        yield works("apex", f"NVIDIA's apex {installed('apex')} is here with its compiled parts")


def _without_amp(build: str) -> Finding:
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return absent("apex", "apex is not installed and not needed: torch's AdamW and LayerNorm are used")
    places = [Path(place) for place in spec.submodule_search_locations or []]
    where = places[0] if places else spec.origin
    if any((place / "optimizers/fused_adam.py").is_file() for place in places):
        return broken("apex", f"NVIDIA's apex at {where} lacks its compiled parts", build)
    version = installed("apex")
    return broken(
        "apex",
        f"The package apex{f' {version}' if version else ''} at {where} is not NVIDIA's but another project",
        f"python -m pip uninstall apex and, for fused kernels, {build}",
    )
