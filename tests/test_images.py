"""The two images of cluster/gpu have the same base and run the same commands, and the Dockerfile passes a linter.

Neither is built here, which would take Docker and Apptainer.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from deepspeed.accelerator import real_accelerator
from deepspeed.ops.op_builder import all_ops

from tests.conftest import ROOT

DOCKERFILE = (ROOT / "cluster/gpu/Dockerfile").read_text(encoding="utf-8")
DEFINITION = (ROOT / "cluster/gpu/mvlm.def").read_text(encoding="utf-8")


def docker_stages() -> list[list[tuple[str, str]]]:
    """Instructions and arguments of each stage, continued lines joined."""
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    steps = [(line.split()[0], " ".join(line.split()[1:])) for line in lines.splitlines() if line.strip()]
    starts = [place for place, (name, _) in enumerate(steps) if name == "FROM"]
    return [steps[start:end] for start, end in zip(starts, [*starts[1:], len(steps)], strict=True)]


def docker_commands(stage: list[tuple[str, str]]) -> list[str]:
    """The commands of RUN, ENV and WORKDIR one by one, until the image's user is made: Apptainer runs as its caller."""
    commands: list[str] = []
    for name, words in stage:
        if words.startswith("useradd "):
            break
        if name == "ENV":
            commands.append(f"export {words}")
        if name == "WORKDIR":
            commands.append(f"cd {words}")
        if name == "RUN":
            commands += [command.strip().replace("${EFA}", "{{ EFA }}") for command in words.split("&&")]
    return commands


def definition_stages() -> list[str]:
    return re.split(r"^Bootstrap: docker\n", DEFINITION, flags=re.MULTILINE)[1:]


def section(stage: str, name: str) -> list[str]:
    lines = stage.partition(f"%{name}\n")[2].partition("\n%")[0].splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


def test_both_run_the_same_commands_in_both_stages() -> None:
    for docker, apptainer in zip(docker_stages(), definition_stages(), strict=True):
        post = section(apptainer, "post")
        assert post[0] == "set -e"  # as && does
        assert post[1:] == docker_commands(docker)


def test_both_start_from_the_same_pinned_bases() -> None:
    (base,) = re.findall(r"^ARG BASE=(.*)$", DOCKERFILE, flags=re.MULTILINE)
    major, minor = map(int, re.search(r":(\d+)\.(\d+)\.\d+-cuda\d+\.\d+-", base).groups())  # type: ignore[union-attr]
    assert (major, minor) >= (2, 10)
    for docker, apptainer in zip(docker_stages(), definition_stages(), strict=True):
        assert f"From: {docker[0][1].split()[0].replace('${BASE}', base)}\n" in apptainer


def test_the_final_stage_has_network_libraries_but_no_compiler_and_no_root() -> None:
    build, final = docker_stages()
    assert "-devel" in build[0][1] and "-runtime" in final[0][1]
    installed = " ".join(docker_commands(final))
    assert not re.search(r"\b(g\+\+|gcc|nvcc|build-essential|ninja)\b", installed)
    assert {"rdma-core", "libibverbs1", "ibverbs-providers"} <= set(installed.split())
    assert ("USER", "10001") in final
    assert "+PTX" in dict(build)["ENV"]


def test_extensions_are_compiled_for_a_gpu_though_the_build_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (built,) = [command for command in docker_commands(docker_stages()[0]) if "DS_BUILD_" in command]
    words = [word for word in built.split() if "=" in word]
    monkeypatch.delenv("DS_ACCELERATOR")
    for word in words:
        if word.startswith("DS_ACCELERATOR="):
            monkeypatch.setenv(*word.split("="))
    monkeypatch.setattr(real_accelerator, "ds_accelerator", None)  # as in a process that has not asked for it yet
    try:
        assert any("multi_tensor_adam.cu" in name for name in importlib.reload(all_ops).ALL_OPS["fused_adam"].sources())
    finally:
        monkeypatch.undo()
        importlib.reload(all_ops)


def test_apptainer_is_given_every_file_that_a_stage_reads() -> None:
    build, final = definition_stages()
    lines = [*section(build, "files"), *section(final, "files"), *section(final, "files from build")]
    assert all(len(line.split()) == 2 for line in lines), "Apptainer reads two words per line, source and target"
    copied = {line.split()[0] for line in section(build, "files")}
    assert copied >= {"mvlm", "data_tools", "cluster", "pyproject.toml", "setup.py", "requirements.txt", "README.md"}
    assert all((ROOT / name).exists() for name in copied)
    from_build = {words.split()[1] for name, words in docker_stages()[1] if words.startswith("--from=build")}
    assert {line.split()[0] for line in section(final, "files from build")} == from_build
    given = {line.split()[0] for line in section(final, "files")}
    assert given == {"cluster/gpu/install_efa.sh", "requirements.txt"}


@pytest.mark.parametrize("script", ["install_efa.sh", "build_apex.sh"])
def test_the_scripts_are_valid_bash_and_executable(script: str) -> None:
    path = ROOT / "cluster/gpu" / script
    assert path.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0


def test_efa_is_installed_only_on_request() -> None:
    assert subprocess.run([str(ROOT / "cluster/gpu/install_efa.sh"), ""], capture_output=True).returncode == 0


def test_requirements_are_copied_before_the_code_so_that_their_layer_is_reused() -> None:
    copies = [words for name, words in docker_stages()[0] if name == "COPY"]
    assert copies[0] == "requirements.txt ./" and copies[-1] == ". ."


def test_the_dockerfile_passes_the_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("there is no hadolint")
    command = [str(hadolint), "cluster/gpu/Dockerfile"]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout
