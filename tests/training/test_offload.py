"""Optimizers of offloaded state: without a compiler for DeepSpeed's extensions, and on a disk."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.ops.op_builder.builder import OpBuilder

from mvlm.config.load import load_config
from mvlm.config.schema import Config
from mvlm.data.samples.tokenizer import train_tokenizer
from mvlm.errors import UserError
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.encoders import build_model
from mvlm.training.engine import Engine
from mvlm.training.zero.disk import LEAST
from mvlm.training.zero.offload import build_optimizer
from tests.conftest import ROOT, TINY
from tests.training.parity_worker import resolved


def tiny_model() -> tuple[MaskVLM, Config]:
    config = load_config(ROOT / "mvlm/configs/tiny.toml", TINY)
    torch.manual_seed(0)
    return build_model(config.blueprint, train_tokenizer(["red circle top left"] * 5, 300)), config


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of DeepSpeed's extensions has been compiled, and none can be."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})  # those that other tests have loaded


def test_torchs_adamw_is_used_without_a_compiler(
    one_rank: None, no_compiler: None, capsys: pytest.CaptureFixture[str]
) -> None:
    model, config = tiny_model()
    content = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    ds_config = resolved(model, config, content, 1)
    optimizer, completed = build_optimizer(model, config.optim, ds_config, torch.device("cpu"), {})
    assert type(optimizer) is torch.optim.AdamW
    assert "AdamW for CPUs cannot be compiled (rank 0: " in capsys.readouterr().err
    engine = Engine(model, config.optim, config.objectives, completed)
    assert engine.engine.basic_optimizer is not None and engine.updates == 0


def test_nvme_without_async_io_or_a_usable_folder_is_refused(one_rank: None, no_compiler: None, tmp_path: Path) -> None:
    model, config = tiny_model()
    on_disk = {"device": "nvme", "nvme_path": str(tmp_path)}
    ds_config = {"zero_optimization": {"stage": 3, "offload_param": on_disk}}
    with pytest.raises(UserError, match=r"async_io.*libaio-dev.*zero3_offload\.json"):
        build_optimizer(model, config.optim, ds_config, torch.device("cpu"), {})
    (tmp_path / "file").touch()
    on_disk["nvme_path"] = str(tmp_path / "file/below")
    with pytest.raises(UserError, match=r"cannot be offloaded to .*nvme_path"):
        build_optimizer(model, config.optim, ds_config, torch.device("cpu"), {})


def engine_offloaded_to(folder: Path) -> Any:
    model, config = tiny_model()
    offload = {"device": "nvme", "nvme_path": str(folder)}
    ds_config = resolved(model, config, {"zero_optimization": {"stage": 3, "offload_optimizer": offload}}, 1)
    return Engine(model, config.optim, config.objectives, ds_config)


def mapped_from(folder: Path) -> list[range]:
    """The addresses at which this process has mapped files of a folder."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    ends = [line.split()[0].split("-") for line in lines]
    return [range(int(first, 16), int(last, 16)) for first, last in ends]


def test_large_tensors_of_an_optimizer_are_mapped_from_files(one_rank: None, no_compiler: None, tmp_path: Path) -> None:
    """This holds for weights, moments and gradients, and also after a resume."""
    engine = engine_offloaded_to(tmp_path / "disk")
    engine.prepare_state(3)
    own = [*engine._state.tensors(), engine.engine.optimizer.grad_partitions_flat_buffer]
    own += [owner.grad for owner in engine._state._owners()]
    large = [tensor for tensor in own if tensor.nbytes >= LEAST]
    assert len(large) >= 5
    mapped = mapped_from(tmp_path)
    assert all(any(tensor.data_ptr() in addresses for addresses in mapped) for tensor in large)


def test_an_optimizer_that_does_not_fit_on_the_disk_is_refused(
    one_rank: None, no_compiler: None, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LEAST, limits[1]))
    try:
        with pytest.raises(UserError, match=r"The optimizer cannot be offloaded to .*File too large.*nvme_path"):
            engine_offloaded_to(tmp_path / "disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
