"""The plans of the shipped configurations against those kept, and the planner's promises on small ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mvlm.config.load import load_config
from mvlm.errors import UserError
from mvlm.estimate.cards import CARDS, find_card
from mvlm.estimate.encoders import KNOWN_TEXT, Shape, shape_of
from mvlm.estimate.plan import Planner, Request, as_json, round_figures
from mvlm.training.zero.json_file import read_deepspeed_json
from tests.conftest import ROOT

GOLDEN = Path(__file__).parent / "golden.json"
RECIPES = ("tiny", "small", "base", "large", "huge")
GPUS = {"tiny": (1, 1), "small": (1, 8), "base": (1, 8), "large": (8, 8), "huge": (8, 8)}  # nodes, GPUs of each
KEPT = ("micro_batch", "largest_micro_batch", "fits", "pairs_per_s", "hours", "advice")
JSONS = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))


def request(
    recipe: str, deepspeed: str, *overrides: str, gpu: str = "h100", nodes: int = 1, per_node: int = 8
) -> Request:
    toml, file = ROOT / f"mvlm/configs/{recipe}.toml", ROOT / f"ds_configs/{deepspeed}.json"
    return Request(
        config=load_config(toml, overrides),
        content=read_deepspeed_json(file),
        names=(file.name, toml.name),
        card_name=gpu,
        card=find_card(gpu),
        nodes=nodes,
        per_node=per_node,
        corpus=4_000_000,
        mfu=0.45,
    )


@pytest.fixture(scope="module")
def shapes() -> dict[str, Shape]:
    return {name: shape_of(load_config(ROOT / f"mvlm/configs/{name}.toml")) for name in RECIPES}


def golden(shapes: dict[str, Shape]) -> dict[str, Any]:
    """Of every recipe its size and work, and by DeepSpeed JSON what differs."""
    found: dict[str, Any] = {}
    for recipe in RECIPES:
        nodes, per_node = GPUS[recipe]
        by_json = {
            name: as_json(Planner(request(recipe, name, nodes=nodes, per_node=per_node), shapes[recipe]))
            for name in JSONS
        }
        one = by_json["zero1"]
        found[recipe] = {
            "gpus": one["gpus"],
            "parameters": one["parameters"],
            "flops_per_pair": one["flops_per_pair"],
            "efficiency": one["efficiency"],
            "deepspeed": {
                name: {key: plan[key] for key in KEPT}
                | {"memory_gb": {kind: value / 1e9 for kind, value in plan["memory_bytes"].items()}}
                for name, plan in by_json.items()
            },
        }
    return round_figures(found)


def test_shipped_configurations_are_planned_as_before(shapes: dict[str, Shape], tmp_path: Path) -> None:
    found, file = golden(shapes), tmp_path / "golden.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    known = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert found == known, f"If the new plans are right: cp {file} {GOLDEN}"


def test_recipes_have_the_sizes_they_claim(shapes: dict[str, Shape]) -> None:
    billions = {name: shape.total / 1e9 for name, shape in shapes.items()}
    assert billions["small"] == pytest.approx(0.1, rel=0.2)
    assert billions["base"] == pytest.approx(0.335, rel=0.01)  # METHOD: about 335 M
    assert billions["large"] == pytest.approx(0.9, rel=0.1)
    assert billions["huge"] == pytest.approx(3, rel=0.1)


def test_learning_rates_follow_the_rule(shapes: dict[str, Shape]) -> None:
    """docs/plan.md: the paper's rates x 768 / width x sqrt(global batch / 512)."""
    for name in ("small", "base", "large", "huge"):
        config = load_config(ROOT / f"mvlm/configs/{name}.toml")
        factor = 768 / shapes[name].sizes.vision.width * (config.train.global_batch / 512) ** 0.5
        assert config.optim.lr == pytest.approx(3e-4 * factor, rel=0.02), name
        assert config.optim.encoder_lr == pytest.approx(1e-5 * factor, rel=0.02), name


def test_a_stage_that_costs_and_one_that_fits_are_named(shapes: dict[str, Shape]) -> None:
    plan = as_json(Planner(request("base", "zero3", nodes=512, gpu="h100"), shapes["base"]))
    assert plan["ranks"] < plan["gpus"]  # 512 pairs in groups of 16 cannot feed 4,096 GPUs
    assert any("uses 32 of the 4096 GPUs" in sentence for sentence in plan["advice"])
    plan = as_json(Planner(request("base", "zero3", "train.global_batch=65536", nodes=512), shapes["base"]))
    assert any(sentence.startswith("ZeRO-3 costs you") and "; ZeRO-2 fits" in sentence for sentence in plan["advice"])


def test_what_does_not_fit_is_told_with_what_would(shapes: dict[str, Shape]) -> None:
    planner = Planner(
        request("base", "fp16", "train.global_batch=2048", "train.micro_batch=256", gpu="v100"), shapes["base"]
    )
    assert not planner.fits(planner.zero, 256)
    assert planner.fits(planner.zero, planner.largest)
    assert f"train.micro_batch = {planner.largest}" in as_json(planner)["advice"][0]
    auto = Planner(
        request("base", "fp16", "train.global_batch=2048", "train.micro_batch=auto", gpu="v100"), shapes["base"]
    )
    assert auto.pairs == planner.largest
    assert planner.held() >= planner.largest


def test_memory_falls_with_the_stage_and_with_recomputation(shapes: dict[str, Shape]) -> None:
    planner = Planner(request("large", "zero1", "train.micro_batch=32", nodes=8), shapes["large"])
    by_stage = [planner.memory(planner.stage(stage), 32) for stage in (0, 1, 2)]
    assert by_stage[0].optimizer > 60 * by_stage[1].optimizer
    assert by_stage[0].total > by_stage[1].total > by_stage[2].total
    again = Planner(request("large", "zero1", "train.micro_batch=32", "train.recompute=1", nodes=8), shapes["large"])
    assert again.memory(again.zero, 32).activations < 0.25 * by_stage[1].activations
    flops = sum(planner.flops().values())
    alone, twice = (each.step(each.zero, 64, 32, 1).compute for each in (planner, again))
    speed = planner.request.mfu * planner.request.card.peak(planner.precision)
    assert alone == pytest.approx(32 * flops / speed)  # no forward pass is paid twice unless it is asked for
    assert 1.25 < twice / alone < 1.4


def test_a_card_that_lacks_the_precision_is_refused(shapes: dict[str, Shape]) -> None:
    with pytest.raises(UserError, match=r"enables bf16, which v100 .*fp16\.json"):
        Planner(request("base", "zero1", gpu="v100"), shapes["base"])
    with pytest.raises(UserError, match="choose one of v100"):
        find_card("h1000")


def test_cards_grow() -> None:
    assert [CARDS[name].fp16 for name in ("v100", "a100", "h100", "b200")] == sorted(
        CARDS[name].fp16 for name in ("v100", "a100", "h100", "b200")
    )
    assert all(card.bandwidth > card.link > card.network > 0 for card in CARDS.values())


def test_an_unknown_text_encoder_and_a_task_are_refused() -> None:
    base = load_config(ROOT / "mvlm/configs/base.toml")
    other = dataclasses.replace(base, model=dataclasses.replace(base.model, text="nobody/knows-this"))
    with pytest.raises(UserError, match="is not known here"):
        shape_of(other)
    with pytest.raises(UserError, match="cannot be planned"):
        shape_of(load_config(ROOT / "mvlm/configs/vqa.toml"))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("FacebookAI/roberta-base", 124.6), ("google-bert/bert-base-uncased", 109.5), ("FacebookAI/roberta-large", 355.4)],
)
def test_known_encoders_have_their_published_sizes(name: str, millions: float) -> None:
    """Parameters with the pooler, as the hub counts them in each model's safetensors without its classifier."""
    import torch
    from transformers import AutoConfig, AutoModel

    kind, settings = KNOWN_TEXT[name]
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(kind, **settings))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
