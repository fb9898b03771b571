"""`mvlm doctor` on environments that are really broken, one way at a time."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from mvlm.__main__ import main
from mvlm.check.folders import Folders
from mvlm.check.machine import extensions, packages, probe, schedulers
from mvlm.check.machine.probe import PROBES, isolated
from mvlm.check.report import Finding
from tests.conftest import ROOT, free_port

Program = Callable[[str, str], None]


def only(found: Iterator[Finding] | list[Finding], state: str, *parts: str) -> Finding:
    """The only finding with this verdict; it contains these parts and, if something is broken, a remedy."""
    (finding,) = [finding for finding in found if finding.verdict == state]
    assert all(part in finding.sentence for part in parts), finding.sentence
    assert bool(finding.remedy) or state != "broken"
    assert finding.sentence.endswith(".") and "\n" not in finding.sentence
    return finding


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """program(name, script) puts a shell script first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return make


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first on the import path, here and in child processes."""
    folder = tmp_path / "library"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
    return folder


def install(library: Path, name: str, version: str, *lines: str) -> None:
    info = library / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines]))


# --- probes


def test_a_probe_that_crashes_does_not_take_the_doctor_with_it(library: Path) -> None:
    (library / "psutil.py").write_text("import ctypes\nctypes.string_at(0)\n")
    only(isolated("exchange", Folders()), "broken", "died of SIGSEGV", "python -m mvlm.check.machine.probe exchange")


def test_a_probe_that_hangs_is_killed_with_its_children(program: Program, tmp_path: Path) -> None:
    program("sinfo", f"echo $$ > {tmp_path}/pid; exec sleep 600")
    began = time.monotonic()
    only(isolated("slurm", Folders(), seconds=6), "broken", "no answer within 6 s")
    assert time.monotonic() - began < 60
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_message_of_a_probe_that_raises_is_shown(library: Path) -> None:
    (library / "psutil.py").write_text("raise RuntimeError('psutil does not fit')\n")
    only(isolated("exchange", Folders()), "broken", "psutil does not fit")


# --- Python and packages


def test_the_installed_packages_work() -> None:
    assert {finding.verdict for finding in packages.find(Folders())} == {"works"}
    least = ".".join(map(str, packages.LEAST_PYTHON))
    assert f'requires-python = ">={least}"' in (ROOT / "pyproject.toml").read_text()


def test_packages_of_a_wrong_version_are_broken(library: Path) -> None:
    install(library, "torch", "1.13.0")
    install(
        library, "ray", "2.60.0", "Provides-Extra: default", 'Requires-Dist: nowhere-to-be-found; extra == "default"'
    )
    found = {each.facts["package"]: each.sentence for each in isolated("packages", Folders()) if each.remedy}
    assert found.keys() == {"torch", "ray"}
    assert "torch 1.13.0 is installed" in found["torch"] and "pip install 'torch<3,>=2.9'" in found["torch"]
    assert "ray lacks nowhere-to-be-found, which its extra 'default' needs" in found["ray"]


def test_a_missing_package_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("nowhere-to-be-found>=3  # for nothing\npillow>=11\n")
    monkeypatch.setattr(packages, "REQUIREMENTS", tmp_path / "requirements.txt")
    only(packages.find(Folders()), "broken", "nowhere-to-be-found is not installed", "pip install")


# --- compilation


def test_a_compiler_is_found_tried_and_missed(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if shutil.which("c++"):
        only(extensions.find_compiler(Folders()), "works", "compiles a Python extension")
    program("c++", "echo 'answer.cpp:1:10: fatal error: Python.h: No such file or directory' >&2; exit 1")
    only(extensions.find_compiler(Folders()), "broken", "(Python.h: No such file or directory)", "python3-dev")
    monkeypatch.setenv("CXX", "g++-99 -O2")
    only(extensions.find_compiler(Folders()), "broken", "CXX=g++-99 -O2 names no compiler", "unset it")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    only(extensions.find_compiler(Folders()), "absent", "no C++ compiler", "install g++")
    monkeypatch.setattr(extensions, "gpus_of_machine", lambda: 1)
    only(extensions.find_compiler(Folders()), "broken", "Triton's kernels on the GPU need")


def test_the_lock_of_a_killed_compilation_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch.utils.file_baton import FileBaton

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr("mvlm.runtime.extensions.waits_for_files", lambda: True)
    only(extensions.find_locks(Folders()), "works", "No compilation has left a lock")
    (tmp_path / "cpu_adam").mkdir()
    baton = FileBaton(str(tmp_path / "cpu_adam/lock"))
    assert baton.try_acquire()
    assert "is being compiled" in next(extensions.find_locks(Folders())).sentence
    os.close(baton.fd)  # as the kernel does for a process that is killed
    only(extensions.find_locks(Folders()), "broken", f"rm {tmp_path}/cpu_adam/lock")


def test_an_apex_of_another_project_or_without_its_extensions_is_broken(library: Path) -> None:
    only(extensions.find_apex(Folders()), "absent", "not needed")
    (library / "apex").mkdir()
    (library / "apex/__init__.py").write_text("import pyramid_of_somebody_else\n")
    install(library, "apex", "0.9.10.dev0")
    only(extensions.find_apex(Folders()), "broken", "apex 0.9.10.dev0", "not NVIDIA's", "pip uninstall apex")
    (library / "apex/optimizers").mkdir()
    (library / "apex/optimizers/fused_adam.py").touch()
    only(extensions.find_apex(Folders()), "broken", "lacks its compiled parts", "build_apex.sh")
    (library / "amp_C.py").write_text("raise ImportError('amp_C.so: undefined symbol: _ZN3c10')\n")
    only(extensions.find_apex(Folders()), "broken", "does not fit this torch (amp_C.so: undefined symbol")


def test_triton_runs_our_kernels_unless_its_library_does_not_fit(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    only(isolated("triton", Folders()), "works", f"Triton {version('triton')} runs our kernels, in its interpreter")
    (library / "triton.py").write_text("raise ImportError('libtriton.so: undefined symbol: _ZN4mlir')\n")
    only(isolated("triton", Folders()), "broken", "Triton cannot be used", "undefined symbol")


# --- communication between ranks


def test_two_processes_communicate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    only(isolated("exchange", Folders()), "works", "reduced a number over gloo")


def test_a_missing_network_interface_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    only(isolated("exchange", Folders()), "broken", "GLOO_SOCKET_IFNAME=nowhere0", "lo", "unset GLOO_SOCKET_IFNAME")


# --- SLURM and Ray


def test_every_state_of_slurm(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program("sinfo", "echo 'n1|gpu*|idle'; echo 'n2|gpu*|idle'; echo 'n3|gpu*|down*'; echo 'n1|debug|idle'")
    found = only(schedulers.find_slurm(Folders()), "works", "partitions debug, gpu", "2 idle, 1 down*")
    assert found.facts["nodes"] == {"idle": 2, "down*": 1}
    program("sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    only(schedulers.find_slurm(Folders()), "broken", "Unable to contact slurm controller", "scontrol ping")
    program("sinfo", "echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1")
    only(schedulers.find_slurm(Folders()), "absent", "configured for no cluster")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    only(schedulers.find_slurm(Folders()), "broken", "configuration source")
    monkeypatch.setattr(schedulers, "SINFO_SECONDS", 0.3)
    program("sinfo", "exec sleep 60")
    only(schedulers.find_slurm(Folders()), "broken", "no answer within")
    monkeypatch.setenv("PATH", "/nowhere")
    only(schedulers.find_slurm(Folders()), "absent", "not installed")


def test_every_state_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in schedulers.ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    only(schedulers.find_ray(Folders()), "works", "is installed")
    for address in (f"127.0.0.1:{free_port()}", f"ray://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        only(schedulers.find_ray(Folders()), "broken", f"RAY_ADDRESS={address} does not answer", "refused")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1")
    only(schedulers.find_ray(Folders()), "broken", "it is not an address")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(schedulers, "STATUS_SECONDS", 1.0)
        only(schedulers.find_ray(Folders()), "broken", "`ray status` gave no answer within 1 s")


# --- data


def test_an_unknown_decoder_is_broken_and_a_slow_one_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVLM_DECODER", "turbo")
    only(isolated("jpeg", Folders()), "broken", "MVLM_DECODER=turbo is not a decoder")
    monkeypatch.setenv("MVLM_DECODER", "pillow")
    only(isolated("jpeg", Folders()), "absent", "decoded by pillow", "not native")


def test_damaged_shards_are_broken(scenes: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(scenes, tmp_path / "shards")
    file = shards / "train/000000.arrow"
    file.write_bytes(file.read_bytes().replace(b"\x89PNG", b"\x00PNG", 200))
    os.truncate(shards / "eval/000000.arrow", 5000)
    found = isolated("shards", Folders(shards=(str(shards), str(tmp_path / "nowhere"))))
    broken = [finding.sentence for finding in found if finding.verdict == "broken"]
    assert "eval/000000.arrow has 5000 bytes" in broken[0] and "nowhere" in broken[-1]
    assert "train/000000.arrow row 1 (key" in broken[1] and "has changed since it was written: copy" in broken[1]
    only(isolated("shards", Folders(shards=(str(scenes / "eval"),))), "works", "images decode")


# --- disks, limits, the command


def test_a_disk_that_is_full_or_read_only_is_broken(mount_disk: Callable[[str], Path]) -> None:
    disk = mount_disk("64k")
    found = {finding.topic: finding for finding in isolated("storage", Folders(run=str(disk / "run")))}
    assert found["run folder"].verdict == "broken" and "No space left on device" in found["run folder"].says
    assert list(disk.iterdir()) == []
    found = {finding.topic: finding for finding in isolated("storage", Folders(run="/proc/nowhere"))}
    assert found["run folder"].verdict == "broken" and "/proc" in found["run folder"].says


def test_a_low_limit_of_open_files_is_broken() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        found = {finding.topic: finding for finding in PROBES["storage"].find(Folders())}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found["open files"].verdict == "broken" and "ulimit -n" in found["open files"].remedy
    assert found["TMPDIR"].verdict in ("works", "broken") and found["TMPDIR"].facts["bytes_per_s"] > 0


def test_the_command_prints_findings_and_a_summary(
    monkeypatch: pytest.MonkeyPatch, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {name: PROBES[name] for name in ("packages", "slurm", "clock")}
    monkeypatch.setattr(probe, "PROBES", kept)
    program("sinfo", "exit 3")
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["works", "python"],
        ["works", "packages"],
        ["broken", "slurm"],
        ["works", "clock"],
    ]
    assert lines[-1] == "doctor: 3 work, 0 absent, 1 broken"
    program("sinfo", "echo 'n1|all|idle'")
    assert main(["doctor", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["works"], printed["broken"], printed["problems"]) == (4, 0, 0)
    assert printed["findings"][0].keys() == {"subject", "state", "says", "remedy", "facts"}
    assert printed["findings"][0]["says"].startswith("Python 3") and not printed["findings"][0]["says"].endswith(".")
    assert printed["findings"][0]["facts"]["version"] == ".".join(map(str, sys.version_info[:3]))
