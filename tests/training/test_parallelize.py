"""The order in which freezing, recomputation, kernels, compilation and ZeRO are applied to a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from mvlm.kernels.gelu_linear import GeluLinear
from mvlm.training.blocks import find_blocks
from tests.training.parity_worker import built, configuration, engine_of


def test_everything_else_is_applied_before_zero_shards_the_model(one_rank: None, scenes: Path) -> None:
    """Freezing comes first, since frozen blocks are not recomputed, and ZeRO after the trials that settle its JSON."""
    config = configuration(str(scenes), 16, ["train.freeze=['vision']", "train.recompute=1"])
    model, _ = built(config, 0, 1)
    seen: dict[str, Any] = {}

    def settle(ds_config: dict[str, Any]) -> dict[str, Any]:
        seen["trained"] = any(parameter.requires_grad for parameter in model.vision.parameters())
        seen["recomputed"] = [isinstance(block.forward, partial) for block in find_blocks(model)]
        seen["kernels"] = any(isinstance(module, GeluLinear) for module in model.modules())
        seen["sharded"] = any(hasattr(parameter, "ds_numel") for parameter in model.parameters())
        return ds_config | {"gradient_clipping": 0.25}

    engine = engine_of(model, config, {"zero_optimization": {"stage": 3}}, 1, settle)
    blocks = len(seen["recomputed"])
    assert seen == {"trained": False, "recomputed": [False] + [True] * (blocks - 1), "kernels": True, "sharded": False}
    assert all(hasattr(parameter, "ds_numel") for parameter in engine.model.parameters())
    assert engine.ds_config["gradient_clipping"] == 0.25


def test_trials_of_the_model_come_before_compilation(one_rank: None, scenes: Path) -> None:
    """The compiler would see sizes that differ between trials and steps, and compile for dynamic shapes."""
    config = configuration(str(scenes), 16, ["train.compile=true"])
    model, _ = built(config, 0, 1)

    def are_compiled() -> set[bool]:
        return {"forward" in vars(block) for block in find_blocks(model)}

    def settle(ds_config: dict[str, Any]) -> dict[str, Any]:
        assert are_compiled() == {False}
        return ds_config

    engine_of(model, config, {"zero_optimization": {"stage": 1}}, 1, settle)
    assert are_compiled() == {True}
