"""A user's DeepSpeed JSON meets the run's TOML: gaps are filled in, contradictions are named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mvlm.config.load import load_config
from mvlm.config.schema import Config, Train
from mvlm.errors import UserError
from mvlm.kernels import probes
from mvlm.runtime import dist
from mvlm.training.zero.config import RunSide, accumulation_steps, resolve, usable_ranks
from mvlm.training.zero.json_file import read_deepspeed_json, unused
from mvlm.training.zero.json_keys import PLAIN, check_keys, check_values
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU on which "auto" leaves bf16 off, whatever this machine is."""
    monkeypatch.setattr(probes, "CPU_FLAGS", frozenset())


def config(*overrides: str) -> Config:
    given = ["train.global_batch=64", "train.micro_batch=16", "optim.clip=1.0", "optim.lr=3e-4"]
    return load_config(ROOT / "mvlm/configs/tiny.toml", [*given, *overrides])


def batch_of(*overrides: str) -> Train:
    return config(*overrides).train


def resolved(content: dict[str, Any], *overrides: str, world: int = 2, parameters: int = 20_000_000) -> dict[str, Any]:
    run, names = config(*overrides), ("user.json", "run.toml")
    parts = run.train, run.optim
    return resolve(content, RunSide(names, run.run.dir, *parts, world, (1000, 50), parameters))


def refusal(content: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        resolved(content, *overrides)
    message = str(error.value)
    assert "user.json" in message
    assert "\n" not in message
    return message


def test_a_deepspeed_scheduler_must_be_the_runs_schedule() -> None:
    named = {"scheduler": {"type": "WarmupCosineLR", "params": {"cos_min_ratio": 0.1}}}
    assert "WarmupCosineLR" in refusal(named, "optim.schedule=wsd") and resolved(named)
    resolved(HUGGING_FACE, "optim.schedule=wsd")


def test_an_empty_json_is_filled_in() -> None:
    found = resolved({})
    assert found["train_batch_size"] == 64
    assert found["train_micro_batch_size_per_gpu"] == 16
    assert found["gradient_accumulation_steps"] == 2
    assert found["gradient_clipping"] == 1.0
    assert found["zero_optimization"]["stage"] == 0


HUGGING_FACE = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {"type": "auto", "params": {"warmup_num_steps": "auto", "total_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
"""The shape of the example in the documentation of Hugging Face's integration."""


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_hugging_faces_auto_is_filled_in_everywhere(stage: int) -> None:
    given = json.loads(json.dumps(HUGGING_FACE))
    given["zero_optimization"]["stage"] = stage
    found = resolved(given)
    assert "auto" not in json.dumps(found)
    assert found["steps_per_print"] == 2000
    assert found["bf16"]["enabled"] is found["fp16"]["enabled"] is False
    zero = found["zero_optimization"]
    assert zero["reduce_bucket_size"] == 2_000_000  # a tenth of the model
    assert zero["stage3_param_persistence_threshold"] == 100_000
    assert "optimizer" not in found and "scheduler" not in found  # DeepSpeed gets ours as objects


def test_the_users_own_json_is_not_changed() -> None:
    given = json.loads(json.dumps(HUGGING_FACE))
    resolved(given)
    assert given == HUGGING_FACE


@pytest.mark.parametrize(("parameters", "bucket"), [(1000, 500_000), (100_000_019, 10_000_000), (10**10, 50_000_000)])
def test_buckets_are_a_tenth_of_the_model_within_bounds(parameters: int, bucket: int) -> None:
    zero = resolved({"zero_optimization": {"stage": 1}}, parameters=parameters)["zero_optimization"]
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == bucket
    assert "stage3_prefetch_bucket_size" not in zero


def test_a_users_bucket_is_kept() -> None:
    zero = resolved({"zero_optimization": {"stage": 2, "reduce_bucket_size": 7}})["zero_optimization"]
    assert zero["reduce_bucket_size"] == 7


EQUAL = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 16,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1,
    "optimizer": {"type": "Adam", "params": {"lr": 3e-4, "betas": [0.9, 0.999], "weight_decay": 0.05, "eps": 1e-8}},
    "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 1000, "warmup_num_steps": 50}},
}


def test_equal_values_are_no_contradiction() -> None:
    assert resolved(EQUAL) == resolved({})


@pytest.mark.parametrize(
    ("content", "key", "given", "ours", "owner"),
    [
        ({"train_batch_size": 128}, "train_batch_size", "128", "64", "train.global_batch"),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu", "8", "16", "train.micro_batch"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps", "4", "2", "train.micro_batch"),
        ({"gradient_clipping": 0.5}, "gradient_clipping", "0.5", "1.0", "optim.clip"),
        ({"optimizer": {"params": {"lr": 1e-3}}}, "optimizer.params.lr", "0.001", "0.0003", "optim.lr"),
        ({"optimizer": {"params": {"betas": [0.9, 0.98]}}}, "optimizer.params.betas", "0.98", "0.999", "optim.betas"),
        ({"optimizer": {"params": {"weight_decay": 0.1}}}, "params.weight_decay", "0.1", "0.05", "optim.weight_decay"),
        ({"optimizer": {"params": {"eps": 1e-6}}}, "optimizer.params.eps", "1e-06", "1e-08", "optim.eps"),
        ({"scheduler": {"params": {"total_num_steps": 9}}}, "params.total_num_steps", "9", "1000", "train.steps"),
        ({"scheduler": {"params": {"warmup_num_steps": 9}}}, "params.warmup_num_steps", "9", "50", "optim.warmup"),
        ({"scheduler": {"params": {"warmup_max_lr": 9}}}, "params.warmup_max_lr", "9", "0.0003", "optim.lr"),
    ],
)
def test_a_contradiction_names_both_values_and_both_files(
    content: dict[str, Any], key: str, given: str, ours: str, owner: str
) -> None:
    message = refusal(content)
    for part in (key, given, ours, owner, "run.toml"):
        assert part in message


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"amp": {"enabled": True}}, ("amp", "bf16")),
        ({"elasticity": {"enabled": True}}, ("elasticity", "delete")),
        ({"curriculum_learning": {"enabled": True}}, ("curriculum_learning", "delete")),
        ({"data_efficiency": {"enabled": True}}, ("data_efficiency", "delete")),
        ({"fp16": {"enabled": True}}, ("fp16", "stage 0", "bf16")),
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 0}}, ("fp16", "stage 0")),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, ("fp16", "bf16", "keep one")),
        ({"optimizer": {"type": "Lamb"}}, ("optimizer.type", "Lamb", "AdamW", "run.toml")),
        ({"optimizer": {"params": {"momentum": 0.9}}}, ("optimizer.params.momentum", "0.9", "AdamW")),
        ({"optimizer": {"params": {"adam_w_mode": False}}}, ("optimizer.params.adam_w_mode", "False", "True")),
        ({"scheduler": {"type": "OneCycle"}}, ("scheduler.type", "OneCycle", "WarmupCosineLR", "run.toml")),
        ({"scheduler": {"params": {"cos_min_ratio": 0.5}}}, ("cos_min_ratio", "0.5", "0.1", "optim.floor")),
        ({"scheduler": {"params": {"warmup_type": "log"}}}, ("warmup_type", "log", "linear")),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, ("torch_autocast", "fp16")),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, ("grad_accum_dtype", "bf16", "stage 1")),
        ({"zero_optimization": {"stage": 1, "compute_grad_norm": False}}, ("compute_grad_norm", "False")),
        ({"zero_optimization": {"stage": 1, "zenflow": {"topk_ratio": 0.1}}}, ("zenflow", "offload_optimizer")),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, ("offload_optimizer", "stage 1", "stage 0")),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            ("offload_param", "stage 3", "stage 2"),
        ),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}, ("ratio", "0.5")),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
            ("offload_optimizer", "nvme", "stage 3", "stage 2"),
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "pin_memory": True}}},
            ("offload_optimizer.pin_memory", "delete the key"),
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/scratch"}}},
            ("offload_param", "nvme", "bf16"),
        ),
        ({"zero_optimization": {"stage": 4}}, ("stage", "4")),
        ({"zero_optimization": {"stage": "auto"}}, ("stage", "auto")),
        ({"zero_optimization": True}, ("zero_optimization", "True")),
        ({"fp16": True}, ("fp16", "True")),
        ({"zero_optimization": {"offload_optimizer": {"device": "auto"}}}, ("offload_optimizer.device", "auto")),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(content: dict[str, Any], parts: tuple[str, ...]) -> None:
    message = refusal(content)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("section", ["amp", "elasticity", "curriculum_learning", "data_efficiency"])
def test_a_refused_section_that_is_off_does_no_harm(section: str) -> None:
    resolved({section: {"enabled": False}})


def test_fp16_with_a_zero_stage_is_let_through() -> None:
    found = resolved({"fp16": {"enabled": True, "loss_scale": "auto"}, "zero_optimization": {"stage": 1}})
    assert found["fp16"] == {"enabled": True}


@pytest.mark.parametrize("content", [{"zero_optimization": None}, {"zero_optimization": {}}, {"optimizer": None}])
def test_the_default_is_stage_0(content: dict[str, Any]) -> None:
    assert resolved(content)["zero_optimization"]["stage"] == 0


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.name)
def test_the_shipped_files_resolve(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/scratch")
    assert "auto" not in json.dumps(resolved(read_deepspeed_json(path)))


ZERO_2_OFFLOAD = """{
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1
    },
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
    },
    "scheduler": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
    },
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu", "pin_memory": true},
        "allgather_partitions": true,
        "allgather_bucket_size": 2e8,
        "overlap_comm": true,
        "reduce_scatter": true,
        "reduce_bucket_size": 2e8,
        "contiguous_gradients": true
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": false
}"""
ZERO_3_OFFLOAD = """{
    "bf16": {"enabled": "auto"},
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1
    },
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
    },
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": true},
        "offload_param": {"device": "cpu", "pin_memory": true},
        "overlap_comm": true,
        "contiguous_gradients": true,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": true
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": false
}"""
"""Whole files as Hugging Face's users have them."""


def test_a_whole_zero_3_file_works() -> None:
    found = resolved(json.loads(ZERO_3_OFFLOAD))
    assert "auto" not in json.dumps(found)
    assert found["zero_optimization"]["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert found["zero_optimization"]["stage3_prefetch_bucket_size"] == 2_000_000
    assert found["train_batch_size"] == 64


def test_a_whole_zero_2_file_is_refused_for_its_schedule_alone() -> None:
    content = json.loads(ZERO_2_OFFLOAD)
    message = refusal(content)
    for part in ("scheduler.type", "WarmupLR", "WarmupCosineLR", "run.toml"):
        assert part in message
    content["scheduler"]["type"] = "auto"
    found = resolved(content)
    assert found["zero_optimization"]["reduce_bucket_size"] == 2e8
    assert "scheduler" not in found


def test_auto_is_left_to_deepspeed_if_it_has_a_default() -> None:
    zero = resolved({"zero_optimization": {"stage": 3, "stage3_max_live_parameters": "auto", "sub_group_size": "auto"}})
    assert {"stage3_max_live_parameters", "sub_group_size"}.isdisjoint(zero["zero_optimization"])


@pytest.mark.parametrize(
    ("cuda", "native", "flags", "bf16"),
    [
        (True, True, "avx2", True),
        (True, False, "amx_bf16", False),
        (False, True, "avx2 avx512f", False),
        (False, False, "AuthenticAMD avx512f avx512_bf16", True),
        (False, False, "GenuineIntel avx512f avx512_bf16", False),
        (False, False, "amx_bf16", True),
    ],
)
def test_bf16_auto_is_on_if_the_device_gains_by_it(
    cuda: bool, native: bool, flags: str, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "CPU_FLAGS", frozenset(flags.split()))
    monkeypatch.setattr("mvlm.runtime.dist.uses_cuda", lambda: cuda)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native)
    found = resolved({"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}})
    assert (found["bf16"]["enabled"], found["fp16"]["enabled"]) == (bf16, False)
    both = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": True}, "zero_optimization": {"stage": 1}}
    assert resolved(both)["bf16"]["enabled"] is False


@pytest.mark.parametrize(
    ("hosts", "size"), [(["a"] * 8, 1), (["a"] * 4 + ["b"] * 4, 4), (["a", "b", "b"], 1), (["a", "b"], 1)]
)
def test_hpz_auto_is_the_ranks_of_a_node(hosts: list[str], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvlm.runtime.dist.gather_objects", lambda value: hosts)
    found = resolved({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": "auto"}})
    assert found["zero_optimization"]["zero_hpz_partition_size"] == size


def test_checksums_do_not_go_with_parameters_on_nvme() -> None:
    zero = {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/scratch"}}
    content = {"bf16": {"enabled": True}, "zero_optimization": zero}
    resolved(content)
    message = refusal(content, "train.checksums=true")
    assert "train.checksums" in message and "offload_param" in message and "turn one of the two off" in message


def test_two_runs_do_not_share_a_folder_on_nvme(monkeypatch: pytest.MonkeyPatch) -> None:
    content = read_deepspeed_json(ROOT / "ds_configs/zero3_nvme.json")
    monkeypatch.setenv("TMPDIR", "/scratch")
    zeros = [resolved(content, f"run.dir={run}")["zero_optimization"] for run in ("runs/a", "runs/b", "runs/a")]
    paths = [Path(zero["offload_param"]["nvme_path"]) for zero in zeros]
    assert paths == [Path(zero["offload_optimizer"]["nvme_path"]) for zero in zeros]
    assert paths[0] == paths[2] != paths[1]
    assert all(path.parent == Path("/scratch") for path in paths)
    monkeypatch.delenv("TMPDIR")
    assert "TMPDIR" in refusal(content)


def test_deepspeeds_old_word_for_offload_is_understood() -> None:
    zero = resolved({"zero_optimization": {"stage": 2, "cpu_offload": True}})["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu"} and "cpu_offload" not in zero


@pytest.mark.parametrize("content", [None, "{", "[1]", b"\xff\xfe\x00"])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: str | bytes | None) -> None:
    file = tmp_path / "user.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"user\.json"):
        read_deepspeed_json(file)


@pytest.mark.parametrize(
    ("total", "micro", "world", "expected"), [(64, 16, 1, 4), (64, 16, 4, 1), (64, 0, 2, 1), (64, 32, 2, 1)]
)
def test_accumulation_makes_up_the_global_batch(total: int, micro: int, world: int, expected: int) -> None:
    given = batch_of(f"train.global_batch={total}", f"train.micro_batch={micro}")
    assert accumulation_steps(given, world) == expected


@pytest.mark.parametrize(
    ("overrides", "world", "parts"),
    [
        (["train.micro_batch=24"], 1, ("64", "24")),
        (["train.micro_batch=32"], 3, ("64", "3", "32")),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(overrides: list[str], world: int, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        accumulation_steps(batch_of(*overrides), world)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "world", "ranks"),
    [
        (["train.micro_batch=0"], 3, 2),  # 64 pairs
        (["train.micro_batch=0"], 8, 8),  # ITM's groups span ranks
        (["train.micro_batch=0"], 1, 1),
        (["train.micro_batch=32"], 8, 2),
        (["train.micro_batch=0"], 50, 32),
        (["train.micro_batch=0", "train.global_batch=36"], 8, 6),
        (["train.micro_batch=0", "train.global_batch=512"], 48, 32),
        (["train.micro_batch=0", "train.global_batch=512"], 512, 512),
    ],
)
def test_the_most_ranks_that_divide_the_batch_are_used(overrides: list[str], world: int, ranks: int) -> None:
    given = batch_of(*overrides)
    assert usable_ranks(given, world) == ranks
    assert accumulation_steps(given, ranks) >= 1


class Asked(dict[str, Any]):
    """Notes which keys are asked for, present or not."""

    def __init__(self, content: dict[str, Any], name: str, found: set[str]) -> None:
        super().__init__(content)
        self.name, self.found = name, found

    def _note(self, key: str) -> str:
        self.found.add(f"{self.name}{key}")
        return key

    def __contains__(self, key: object) -> bool:
        return super().__contains__(self._note(str(key)))

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(self._note(key))

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(self._note(key), default)

    def keys(self) -> Any:
        return self

    def __copy__(self) -> Asked:
        return self


def test_every_key_that_deepspeed_looks_for_is_known() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    found: set[str] = set()
    sections: dict[str, Any] = {name: Asked({}, f"{name}.", found) for name in PLAIN}
    batch = {"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    DeepSpeedConfig(Asked({**batch, **sections}, "", found))
    assert {"steps_per_print", "flops_profiler.detailed", "aio.queue_depth"} <= found
    for name in found:
        content: dict[str, Any] = {}
        *above, key = name.split(".")
        for section in above:
            content = {section: {key: {}}}
        check_keys(content or {key: {}}, "user.json")


@pytest.mark.parametrize(
    ("content", "name", "advice"),
    [
        ({"nonsense": 1}, "nonsense", "delete it."),
        ({"train_batchsize": 64}, "train_batchsize", "did you mean train_batch_size?"),
        ({"zero_optimisation": {"stage": 2}}, "zero_optimisation", "did you mean zero_optimization?"),
        ({"bf16": {"enable": True}}, "bf16.enable", "did you mean bf16.enabled?"),
        ({"wandb": {"projct": "x"}}, "wandb.projct", "did you mean wandb.project?"),
        ({"optimizer": {"tpye": "AdamW"}}, "optimizer.tpye", "did you mean optimizer.type?"),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"devise": "cpu"}}},
            "zero_optimization.offload_optimizer.devise",
            "did you mean zero_optimization.offload_optimizer.device?",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known(content: dict[str, Any], name: str, advice: str) -> None:
    assert refusal(content) == f"user.json: {name} is not a key that DeepSpeed knows; {advice}"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"tensor_parallel": {"tp": {"tp_size": 2}}}, "tensor_parallel.tp.tp_size"),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size"),
        ({"compile": {"deepcompile": True}}, "compile.deepcompile"),
        ({"deepcompile": True}, "deepcompile"),
        ({"hybrid_engine": {"enabled": True}}, "hybrid_engine"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 2}}, "zero_optimization.mics_shard_size"),
    ],
)
def test_settings_that_would_change_the_training_are_refused(content: dict[str, Any], name: str) -> None:
    assert f"{name!r} cannot work here" in refusal(content)


@pytest.mark.parametrize(
    ("content", "words", "reason"),
    [
        ({"zero_optimization": {"stage": 3}}, (), "ZeRO stage 3"),
        ({"bf16": {"enabled": True}}, (), "bf16 at stage 0"),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
            (),
            "zero_optimization.offload_optimizer",
        ),
        ({}, ("optim.name=muon",), "optim.name 'muon'"),
        ({}, ("train.micro_batch=auto",), "train.micro_batch 'auto'"),
        ({}, ("train.audit=0.5",), "train.audit"),
        ({}, ("train.compile=true",), "train.compile"),
    ],
)
def test_settings_that_do_not_go_with_split_layers_are_refused(
    content: dict[str, Any], words: tuple[str, ...], reason: str
) -> None:
    split = {"tensor_parallel": {"autotp_size": 2}}
    resolved(content, *words)
    assert resolved(split)["tensor_parallel"] == {"autotp_size": 2}
    assert f"tensor_parallel.autotp_size cannot be combined with {reason}" in refusal(content | split, *words)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("offload_optimizer", {"device": "cpu"}),
        ("offload_param", {"device": "cpu"}),
        ("zero_hpz_partition_size", 2),
    ],
)
def test_settings_that_do_not_go_with_muon_are_refused_as_the_json_is_read(key: str, value: object) -> None:
    """So check and plan refuse them too, and training does before it builds the model."""
    content = {"zero_optimization": {"stage": 3, key: value}}
    resolved(content)
    message = refusal(content, "optim.name=muon")
    assert "optim.name = 'muon'" in message and f"zero_optimization.{key}" in message and "user.json" in message


@pytest.mark.parametrize("value", [-1, "two", 1.5, True])
def test_the_number_of_ranks_that_split_layers_is_checked(value: object) -> None:
    assert "tensor_parallel.autotp_size is" in refusal({"tensor_parallel": {"autotp_size": value}})


def test_ranks_that_split_layers_are_launched_together() -> None:
    train = batch_of("train.global_batch=12", "train.micro_batch=4")
    assert [usable_ranks(train, world, 2) for world in (2, 3, 5, 6, 9)] == [2, 2, 2, 6, 6]
    with pytest.raises(UserError, match="autotp_size 4 needs as many ranks: launch 4"):
        usable_ranks(train, 3, 4)


def test_settings_that_sum_gradients_otherwise_are_refused() -> None:
    for key, value in (("gradient_allreduce_op", "sum"), ("managed_gradient_accumulation", False)):
        assert f"sets {key} to {value!r} but" in refusal({key: value})
    resolved({"gradient_allreduce_op": "mean", "managed_gradient_accumulation": True})


def test_settings_without_effect_here_are_reported_and_kept_from_deepspeed() -> None:
    given = {
        "activation_checkpointing": {"partition_activations": True, "cpu_checkpointing": False},
        "checkpoint": {"use_node_local_storage": True},
        "tensor_parallel": {"autotp_size": 1},
        "sequence_parallel_size": 1,
        "amp": {"enabled": False},
        "nebula": {"enabled": False},
        "autotuning": {"enabled": False, "fast": "auto"},
        "zero_optimization": {"stage": 2, "mics_shard_size": -1},
        "steps_per_print": 10,
    }
    found = resolved(given)
    assert not given.keys() & found.keys() - {"zero_optimization", "steps_per_print"}
    assert "mics_shard_size" not in found["zero_optimization"] and found["steps_per_print"] == 10
    reported = unused(given | {"tensor_parallel": {"autotp_size": 2, "preset_model": "llama"}}, "user.json")
    assert [sentence.split(" is not used: ")[0] for sentence in reported] == [
        "user.json: activation_checkpointing",
        "user.json: checkpoint",
        "user.json: tensor_parallel.preset_model",
    ]


def test_bf16_may_go_by_its_former_name() -> None:
    assert resolved({"bfloat16": {"enabled": True}})["bf16"] == {"enabled": True, "check_grad_overflow": False}
    assert "enables both fp16 and bf16" in refusal(
        {"bfloat16": {"enabled": True}, "fp16": {"enabled": True}, "zero_optimization": {"stage": 1}}
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"zero_optimization": {"stage": 1, "overlap_comm": "some"}},
            "zero_optimization.overlap_comm is 'some' (Input",
        ),
        ({"communication_data_type": "fp8"}, "refused by DeepSpeed (Invalid communication_data_type"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}}, "zero_optimization.reduce_bucket_size is -1"),
        ({"flops_profiler": True}, "refused by DeepSpeed"),
    ],
)
def test_a_value_that_deepspeed_would_refuse_is_named(content: dict[str, Any], words: str) -> None:
    assert words in refusal(content)


def test_reading_a_deepspeed_json_silences_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = ("DS_ACCELERATOR", "DEEPSPEED_LOG_LEVEL")
    for ask in (lambda: check_keys({}, "ds.json"), lambda: check_values({}, "ds.json")):
        for name in variables:
            monkeypatch.setenv(name, "x")
            monkeypatch.delenv(name)
        ask()
        assert os.environ["DEEPSPEED_LOG_LEVEL"] == "warning"
        assert ("DS_ACCELERATOR" in os.environ) != dist.uses_cuda()


@pytest.mark.campaign
@pytest.mark.parametrize("command", ["check", "plan"])
def test_a_command_that_reads_a_json_prints_none_of_deepspeeds_lines(command: str) -> None:
    words = ["tiny", "--deepspeed_config", "cpu", *(["--gpu", "rtx-4090"] if command == "plan" else [])]
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    ended = subprocess.run(
        [sys.executable, "-m", "mvlm", command, *words],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == (0 if command == "plan" else 1), ended.stderr  # it has no data to train on
    assert not re.search(r"\[(INFO|WARNING)\]|accelerator", ended.stdout + ended.stderr)
