"""Optimisers of offloaded state, without what compiles them and behind compilations that were killed."""

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
    """None of DeepSpeed's extensions is there, nor can be compiled."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})  # another test has had them compiled


def test_without_a_compiler_torchs_adamw_serves(
    one_rank: None, no_compiler: None, capsys: pytest.CaptureFixture[str]
) -> None:
    model, config = tiny_model()
    content = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    ds_config = resolved(model, config, content, 1)
    optimizer, with_it = build_optimizer(model, config.optim, ds_config, torch.device("cpu"))
    assert type(optimizer) is torch.optim.AdamW
    assert "AdamW for CPUs cannot be compiled (rank 0: " in capsys.readouterr().err
    engine = Engine(model, config.optim, config.objectives, with_it)
    assert engine.engine.basic_optimizer is not None and engine.updates == 0


def test_nvme_without_what_it_needs_is_refused(one_rank: None, no_compiler: None, tmp_path: Path) -> None:
    model, config = tiny_model()
    on_disk = {"device": "nvme", "nvme_path": str(tmp_path)}
    ds_config = {"zero_optimization": {"stage": 3, "offload_param": on_disk}}
    with pytest.raises(UserError, match=r"async_io.*libaio-dev.*zero3_offload\.json"):
        build_optimizer(model, config.optim, ds_config, torch.device("cpu"))
    (tmp_path / "file").touch()
    on_disk["nvme_path"] = str(tmp_path / "file/below")
    with pytest.raises(UserError, match=r"cannot be offloaded to .*nvme_path"):
        build_optimizer(model, config.optim, ds_config, torch.device("cpu"))


def engine_on(folder: Path) -> Any:
    model, config = tiny_model()
    offload = {"device": "nvme", "nvme_path": str(folder)}
    ds_config = resolved(model, config, {"zero_optimization": {"stage": 3, "offload_optimizer": offload}}, 1)
    return Engine(model, config.optim, config.objectives, ds_config)


def test_an_optimizers_tensors_are_mapped_from_files(one_rank: None, no_compiler: None, tmp_path: Path) -> None:
    """All that is large of weights, moments and gradients, and after a resume too."""
    engine = engine_on(tmp_path / "disk")
    engine.prepare_state(3)
    maps = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    mapped = [range(*(int(end, 16) for end in ends.split("-"))) for ends in maps]
    own = [*engine._state.tensors(), engine.engine.optimizer.grad_partitions_flat_buffer]
    own += [owner.grad for owner in engine._state._owners()]
    large = [tensor for tensor in own if tensor.nbytes >= LEAST]
    assert len(large) >= 5 and all(any(tensor.data_ptr() in within for within in mapped) for tensor in large)


def test_an_optimizer_that_a_disk_has_no_room_for_is_refused(one_rank: None, no_compiler: None, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LEAST, limits[1]))
    try:
        with pytest.raises(UserError, match=r"The optimizer cannot be offloaded to .*File too large.*nvme_path"):
            engine_on(tmp_path / "disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
