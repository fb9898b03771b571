"""Optimisers of offloaded state, without what compiles them and behind compilations that were killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from deepspeed.ops.op_builder.builder import OpBuilder

from mvlm.config import load_config
from mvlm.data.tokenizer import train_tokenizer
from mvlm.errors import UserError
from mvlm.model.maskvlm import MaskVLM
from mvlm.train import offload
from mvlm.train.ds_config import resolve
from mvlm.train.engine import Engine
from mvlm.train.offload import build_optimizer, wait_for_compilations
from mvlm.train.optim import count_parameters
from tests.conftest import ROOT, TINY

COMPILATION = """
import sys, time
from torch.utils.file_baton import FileBaton
baton = FileBaton(sys.argv[1])
assert baton.try_acquire()
print("compiling", flush=True)
time.sleep(float(sys.argv[2]))
baton.release()
"""


def tiny_model() -> MaskVLM:
    config = load_config(ROOT / "mvlm/configs/tiny.toml", TINY)
    torch.manual_seed(0)
    return MaskVLM(config, train_tokenizer(["red circle top left"] * 5, 300))


def test_without_a_compiler_torchs_adamw_serves(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})  # another test has had it compiled
    model = tiny_model()
    content = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    ds_config = resolve(content, model.config, ("json", "toml"), 1, 10, 2, count_parameters(model))
    optimizer, with_it = build_optimizer(model, model.config, ds_config, torch.device("cpu"))
    assert type(optimizer) is torch.optim.AdamW
    assert "AdamW for CPUs cannot be compiled (rank 0: " in capsys.readouterr().err
    engine = Engine(model, model.config, with_it)
    assert engine.engine.basic_optimizer is not None and engine.updates == 0


def test_nvme_without_what_it_needs_is_refused(one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    model = tiny_model()
    on_disk = {"device": "nvme", "nvme_path": str(tmp_path)}
    ds_config = {"zero_optimization": {"stage": 3, "offload_param": on_disk}}
    with pytest.raises(UserError, match=r"async_io.*libaio-dev.*zero3_offload\.json"):
        build_optimizer(model, model.config, ds_config, torch.device("cpu"))
    (tmp_path / "file").touch()
    on_disk["nvme_path"] = str(tmp_path / "file/below")
    with pytest.raises(UserError, match=r"cannot be offloaded to .*nvme_path"):
        build_optimizer(model, model.config, ds_config, torch.device("cpu"))


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
    age(extension, offload.QUIET_SECONDS + 1)
    wait_for_compilations({"fused_adam"})
    assert (extension / "lock").exists()  # of another extension
    wait_for_compilations({"cpu_adam"})
    assert not (extension / "lock").exists()
    assert f"removed {extension}/lock" in capsys.readouterr().err


def test_what_may_be_compiled_on_another_machine_is_waited_for(
    extension: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "QUIET_SECONDS", 2.0)
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
        age(extension, offload.QUIET_SECONDS + 1)
        wait_for_compilations({"cpu_adam"})
        assert process.wait(10) == 0  # it has removed its lock itself, which fails where another has
    said = capsys.readouterr().err
    assert "is being compiled" in said and "removed" not in said
