"""Plans of the shipped configurations against stored ones, and properties of all plans."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from mvlm.__main__ import main
from mvlm.config.load import load_config
from mvlm.errors import UserError
from mvlm.estimate.cards import CARDS, find_card
from mvlm.estimate.choice import choice_text, choose
from mvlm.estimate.count import FakeModel
from mvlm.estimate.encoders import KNOWN_TEXT, build_without_weights
from mvlm.estimate.plan import Planner, Request
from mvlm.estimate.text import as_json, as_text
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
    config = load_config(toml, overrides)
    return Request(
        train=config.train,
        optim=config.optim,
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
def models() -> dict[str, FakeModel]:
    configs = {name: load_config(ROOT / f"mvlm/configs/{name}.toml") for name in RECIPES}
    return {
        name: FakeModel(build_without_weights(config.blueprint, config.data), config.data)
        for name, config in configs.items()
    }


def round_figures(value: Any, digits: int = 4) -> Any:
    """A tree with its floats rounded to so many significant digits."""
    if isinstance(value, dict):
        return {key: round_figures(item, digits) for key, item in value.items()}
    if isinstance(value, list):
        return [round_figures(item, digits) for item in value]
    if isinstance(value, float):
        return 0.0 if value == 0 else round(value, digits - 1 - math.floor(math.log10(abs(value))))
    return value


def golden(recipe: str, model: FakeModel) -> dict[str, Any]:
    """The size and operations of a model, and its plan with each DeepSpeed JSON."""
    nodes, per_node = GPUS[recipe]
    by_json = {name: as_json(Planner(request(recipe, name, nodes=nodes, per_node=per_node), model)) for name in JSONS}
    one = by_json["zero1"]
    by_kind = {name: {k: value / 1e9 for k, value in plan["memory_bytes"].items()} for name, plan in by_json.items()}
    found = {name: one[name] for name in ("gpus", "parameters", "flops_per_pair", "efficiency")}
    kept = {name: {key: plan[key] for key in KEPT} | {"memory_gb": by_kind[name]} for name, plan in by_json.items()}
    return round_figures(found | {"deepspeed": kept})


@pytest.mark.parametrize(
    "recipe", ["tiny", *(pytest.param(name, marks=pytest.mark.campaign) for name in ("small", "base", "large", "huge"))]
)
def test_shipped_configurations_are_planned_as_before(
    recipe: str, models: dict[str, FakeModel], tmp_path: Path
) -> None:
    known, file = json.loads(GOLDEN.read_text(encoding="utf-8")), tmp_path / "golden.json"
    found = known | {recipe: golden(recipe, models[recipe])}
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert found == known, f"If the new plan is right: cp {file} {GOLDEN}"


def test_the_page_shows_what_is_printed(models: dict[str, FakeModel]) -> None:
    page = (ROOT / "docs/plan.md").read_text(encoding="utf-8")
    planner = Planner(request("base", "zero1", "train.micro_batch=auto"), models["base"])
    for printed in (as_text(as_json(planner)), choice_text(choose(planner))):
        assert f"```text\n{printed.strip()}\n```" in page


def test_offloaded_bytes_are_planned_per_node(models: dict[str, FakeModel]) -> None:
    bytes_each = 16 + 2
    for name, place, elsewhere in (("zero3_offload", "host", "disk"), ("zero3_nvme", "disk", "host")):
        plan = as_json(Planner(request("tiny", name, nodes=2, per_node=4), models["tiny"]))
        assert plan["offloaded_bytes"][place] == pytest.approx(bytes_each * models["tiny"].total / 8)
        assert not plan["offloaded_bytes"][elsewhere]
        gigabytes = f"{bytes_each * models['tiny'].total / 2 / 1e9:,.1f} GB"
        assert f"{gigabytes} {'of memory' if place == 'host' else 'on disk'} on each node" in as_text(plan)
    plan = as_json(Planner(request("tiny", "zero1"), models["tiny"]))
    assert not any(plan["offloaded_bytes"].values())
    assert "offloaded" not in as_text(plan)


def test_recipes_have_the_sizes_they_claim(models: dict[str, FakeModel]) -> None:
    billions = {name: model.total / 1e9 for name, model in models.items()}
    assert billions["small"] == pytest.approx(0.1, rel=0.2)
    assert billions["base"] == pytest.approx(0.335, rel=0.01)  # METHOD: about 335 M
    assert billions["large"] == pytest.approx(0.9, rel=0.1)
    assert billions["huge"] == pytest.approx(3, rel=0.1)


def test_giant_has_ten_billion_parameters_and_learning_rates_by_the_rule() -> None:
    config = load_config(ROOT / "mvlm/configs/giant.toml")
    model = build_without_weights(config.blueprint, config.data)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(10, rel=0.05)
    factor = 768 / model.vision.width * (config.train.global_batch / 512) ** 0.5
    assert config.optim.lr == pytest.approx(3e-4 * factor, rel=0.02)
    assert config.optim.encoder_lr == pytest.approx(1e-5 * factor, rel=0.02)


def test_learning_rates_follow_the_rule(models: dict[str, FakeModel]) -> None:
    """The paper's rates x 768 / width x sqrt(global batch / 512), as docs/plan.md says."""
    for name in ("small", "base", "large", "huge"):
        config = load_config(ROOT / f"mvlm/configs/{name}.toml")
        factor = 768 / models[name].model.vision.width * (config.train.global_batch / 512) ** 0.5
        assert config.optim.lr == pytest.approx(3e-4 * factor, rel=0.02), name
        assert config.optim.encoder_lr == pytest.approx(1e-5 * factor, rel=0.02), name


def test_idle_gpus_and_a_costly_zero_stage_are_named(models: dict[str, FakeModel]) -> None:
    plan = as_json(Planner(request("base", "zero3", nodes=512, gpu="h100"), models["base"]))
    assert plan["ranks"] < plan["gpus"]  # 512 pairs cannot feed 4,096 GPUs
    assert any("uses 512 of the 4096 GPUs" in sentence for sentence in plan["advice"])
    plan = as_json(Planner(request("base", "zero3", "train.global_batch=65536", nodes=512), models["base"]))
    assert any(sentence.startswith("ZeRO-3 costs you") and "fits." in sentence for sentence in plan["advice"])


def test_a_plan_that_does_not_fit_names_the_micro_batch_that_would(models: dict[str, FakeModel]) -> None:
    planner = Planner(
        request("base", "fp16", "train.global_batch=2048", "train.micro_batch=256", gpu="v100"), models["base"]
    )
    assert not planner.fits(planner.zero, 256)
    assert planner.fits(planner.zero, planner.largest)
    assert f"train.micro_batch = {planner.largest}" in as_json(planner)["advice"][0]
    auto = Planner(
        request("base", "fp16", "train.global_batch=2048", "train.micro_batch=auto", gpu="v100"), models["base"]
    )
    assert auto.pairs == planner.largest
    assert planner.held() >= planner.largest


def test_512_and_4096_gpus_hardly_wait_with_stage_0(models: dict[str, FakeModel]) -> None:
    planner = Planner(request("base", "zero0", "train.micro_batch=64"), models["base"])
    for gpus, least in ((8, 0.98), (512, 0.97), (4096, 0.97)):
        step = planner.step(planner.zero, gpus, planner.pairs, 1)
        assert least < step.efficiency < 1
        assert sum(each.exposed for each in step.exchanges.values()) == pytest.approx(step.exposed)
        assert step.exchanges["gradients"].exposed == pytest.approx(step.exchanges["gradients"].seconds / 10)


def test_features_of_a_million_pairs_are_exchanged_in_blocks(models: dict[str, FakeModel]) -> None:
    """Bytes per pair: 2 x 256 fp32 numbers and two identities, once or twice, and two log-sum-exps with the softmax."""
    pairs, found = 1 << 20, {}
    for kind in ("softmax", "sigmoid"):
        for whole in (pairs // 4, pairs):
            words = (f"objectives.contrastive={kind}", f"train.global_batch={whole}", "train.micro_batch=256")
            model = copy.copy(models["base"])
            model.objectives = dataclasses.replace(model.objectives, contrastive=kind)
            planner = Planner(request("base", "zero1", *words, nodes=64), model)
            found[kind, whole] = planner.contrast(), planner.memory(planner.zero, 256).contrastive
    assert [exchange.blocks for exchange, _ in found.values()] == [1, 16] * 2
    assert all(exchange.ahead * exchange.blocks <= exchange.seconds * 1.001 for exchange, _ in found.values())
    sent = {key: exchange.sent / key[1] for key, (exchange, _) in found.items()}
    assert sent["softmax", pairs // 4] == 2064 + 8 and sent["softmax", pairs] == 2 * 2064 + 8
    assert sent["sigmoid", pairs // 4] == sent["sigmoid", pairs] == 2064
    assert found["softmax", pairs][1] < 0.6 * found["softmax", pairs // 4][1]  # though it has four times the pairs
    text = as_text(as_json(planner))
    assert "contrast       2,164.3 MB through each GPU, of all features in 16 blocks" in text


def test_a_ring_takes_the_same_memory_on_any_number_of_ranks_but_more_time(models: dict[str, FakeModel]) -> None:
    model, found = copy.copy(models["base"]), {}
    for exchange in ("blocks", "ring"):
        model.objectives = dataclasses.replace(model.objectives, itc_exchange=exchange)
        for nodes in (1, 64, 512):
            words = (f"objectives.itc_exchange={exchange}", f"train.global_batch={8 * nodes * 256}")
            planner = Planner(request("base", "zero1", *words, "train.micro_batch=256", nodes=nodes), model)
            found[exchange, nodes] = planner.contrast(), planner.memory(planner.zero, 256).contrastive
    held = {memory for (exchange, _), (_, memory) in found.items() if exchange == "ring"}
    assert len(held) == 1 and held.pop() < found["blocks", 1][1]
    assert found["ring", 512][0].blocks == 4096 and found["ring", 512][0].seconds > found["blocks", 512][0].seconds
    assert found["ring", 512][0].ahead == pytest.approx(found["ring", 512][0].seconds / (3 * 4095), rel=0.5)


def test_memory_falls_with_the_stage_and_with_recomputation(models: dict[str, FakeModel]) -> None:
    words = ("train.global_batch=2048", "train.micro_batch=32")
    planner = Planner(request("base", "zero1", *words, nodes=8), models["base"])
    by_stage = [planner.memory(planner.stage(stage), 32) for stage in (0, 1, 2)]
    assert by_stage[0].optimizer > 60 * by_stage[1].optimizer
    assert by_stage[0].total > by_stage[1].total == by_stage[2].total  # each reduces gradients into shares as they come
    held = [planner.states(planner.stage(stage), accumulation=2).held for stage in (1, 2)]
    assert held[0] == pytest.approx(64 * held[1])
    again = Planner(request("base", "zero1", *words, "train.recompute=1", nodes=8), models["base"])
    assert again.memory(again.zero, 32).activations < 0.25 * by_stage[1].activations
    flops = sum(planner.model.flops(foreign=True).step.values())  # ITM's groups of 64 span two ranks
    alone, twice = (each.step(each.zero, 64, 32, 1).compute for each in (planner, again))
    speed = planner.request.mfu * planner.request.card.peak(planner.precision)
    assert alone == pytest.approx(32 * flops / speed)  # no forward pass is computed twice unless asked for
    assert 1.25 < twice / alone < 1.4


def test_averaged_weights_take_as_much_memory_as_a_moment(models: dict[str, FakeModel]) -> None:
    total = models["base"].total
    for deepspeed, ranks in (("zero0", 1), ("zero1", 8), ("zero3_offload", 8)):
        without, averaged = (
            Planner(request("base", deepspeed, *words, per_node=ranks), models["base"])
            for words in ((), ("train.ema=0.999",))
        )
        one, other = (planner.states(planner.zero, accumulation=1) for planner in (without, averaged))
        more = other.optimizer - one.optimizer, other.host - one.host
        assert sum(more) == pytest.approx(4 * total / ranks) and (more[1] > 0) == (deepspeed == "zero3_offload")


def test_muon_has_one_moment_per_matrix_and_costs_products_and_an_exchange(
    models: dict[str, FakeModel],
) -> None:
    """The matrices of base are in 12 blocks of each encoder and 3 of each cross encoder; 8 ranks update them."""
    asked = request("base", "zero1", "optim.name=muon")
    grouped = FakeModel(models["base"].model, models["base"].data, optim=asked.optim)
    muon = copy.copy(models["base"])  # its passes are the same, and counted already
    muon.groups, muon.matrices = grouped.groups, grouped.matrices
    shapes = [shape for group in muon.matrices for shape in group]
    encoders = 24 * (4 * 768**2 + 2 * 768 * 3072)
    assert sum(rows * columns for rows, columns in muon.matrices[0]) == encoders
    count = sum(rows * columns for rows, columns in shapes)
    plans = [Planner(request("base", name, "optim.name=muon"), muon) for name in ("zero0", "zero1")]
    before = [Planner(request("base", name), models["base"]) for name in ("zero0", "zero1")]
    for planner, adamw, share in zip(plans, before, (1, 8), strict=True):
        saved = adamw.memory(adamw.zero, 64).optimizer - planner.memory(planner.zero, 64).optimizer
        assert saved == pytest.approx(4 * count / share)
    steps = [planner.step(planner.zero, 8, 64, 1) for planner in (*plans, before[1])]
    assert [step.exchanges["matrices"].exposed > 0 for step in steps] == [False, True, False]
    assert steps[1].sent - steps[2].sent == 2 * 4 * count
    products = sum(5 * (4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3) for s in shapes) / (0.45 * 67e12)
    spared = 8 * count / 8 / 3.35e12
    assert steps[1].update - steps[2].update == pytest.approx(products - spared)


def test_a_card_that_lacks_the_precision_is_refused(models: dict[str, FakeModel]) -> None:
    with pytest.raises(UserError, match=r"enables bf16, which v100 .*fp16\.json"):
        Planner(request("base", "zero1", gpu="v100"), models["base"])
    with pytest.raises(UserError, match="choose one of v100"):
        find_card("h1000")


def test_newer_cards_are_faster_and_the_page_lists_all() -> None:
    assert [CARDS[name].fp16 for name in ("v100", "a100", "h100", "b200")] == sorted(
        CARDS[name].fp16 for name in ("v100", "a100", "h100", "b200")
    )
    assert all(card.bandwidth > card.link > card.network > 0 for card in CARDS.values())
    page = (ROOT / "docs/plan.md").read_text(encoding="utf-8")
    assert all(name in page for name in CARDS)
    assert all(card.fp16 == pytest.approx(2 * card.fp32, rel=0.01) for name, card in CARDS.items() if "rtx" in name)


def test_consumer_cards_are_known_by_the_names_that_people_use(models: dict[str, FakeModel]) -> None:
    """In order of their rates with fp32 accumulation, which is half as fast on GeForce cards."""
    names = ("RTX 3090", "rtx4080", "RTX-5080", "A10", "rtx_4090", "rtx 5090", "L40S")
    speeds = []
    for name in names:
        planner = Planner(request("tiny", "zero1", gpu=name, per_node=1), models["tiny"])
        assert planner.fits(planner.zero, planner.pairs) and "NVIDIA" in planner.request.card.source
        speeds.append(planner.request.card.peak(planner.precision))
    assert speeds == sorted(speeds) and as_json(planner)["pairs_per_s"] > 0
    sold = {
        "rtx-3090": 142,
        "rtx-4080": 195,
        "rtx-4090": 330.4,
        "rtx-5080": 225.1,
        "rtx-5090": 419,
    }  # fp16 accumulation
    assert {name: 2 * CARDS[name].fp16 / 1e12 for name in sold} == pytest.approx(sold, abs=0.2)


def test_an_unknown_text_encoder_and_a_task_are_refused() -> None:
    base = load_config(ROOT / "mvlm/configs/base.toml")
    other = dataclasses.replace(base, model=dataclasses.replace(base.model, text="nobody/knows-this"))
    with pytest.raises(UserError, match="is not known here"):
        build_without_weights(other.blueprint, other.data)
    with pytest.raises(UserError, match="cannot be planned"):
        vqa = load_config(ROOT / "mvlm/configs/vqa.toml")
        build_without_weights(vqa.blueprint, vqa.data)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("FacebookAI/roberta-base", 124.6), ("google-bert/bert-base-uncased", 109.5), ("FacebookAI/roberta-large", 355.4)],
)
def test_known_text_encoders_have_their_published_sizes(name: str, millions: float) -> None:
    """Parameters with the pooler but without the classifier, as the hub counts them in each model's safetensors."""
    import torch
    from transformers import AutoConfig, AutoModel

    kind, settings = KNOWN_TEXT[name]
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(kind, **settings))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_split_layers_are_planned_by_the_part_of_a_rank(models: dict[str, FakeModel]) -> None:
    whole, asked = models["tiny"], request("tiny", "zero1", "train.micro_batch=8", per_node=2)
    part = Planner(dataclasses.replace(asked, content=asked.content | {"tensor_parallel": {"autotp_size": 2}}), whole)
    first = r"(qkv|query|key|value|key_value|fc1|feed_forward\.0|intermediate\.dense)\.(weight|bias)"
    own = rf"\.{first}$|\.(proj|out|fc2|feed_forward\.2|output\.dense)\.weight$"
    named = [pair for pair in whole.model.named_parameters() if "patch_embed" not in pair[0]]
    split = sum(parameter.numel() for name, parameter in named if re.search(own, name))
    assert part.model.total == whole.total - split / 2 > split / 2
    assert part.ranks == 1
    rank, alone = part.model.flops().step, whole.flops().step
    assert all(0.4 < rank[name] / alone[name] < 1 for name in ("vision", "text", "cross_image", "cross_text"))
    layers = part.step(part.zero, 1, 8, part.accumulation).exchanges["layers"]
    assert layers.seconds == layers.exposed > 0


def test_a_frozen_part_has_its_forward_pass_and_weights_alone(
    models: dict[str, FakeModel], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["plan", "tiny", "--deepspeed_config", "zero1", "--gpu", "h100", "--json", str(tmp_path / "plan.json")]
    assert main([*words, "train.freeze=['visoin']"]) == 1
    assert "train.freeze names 'visoin', which is not a part of this model" in capsys.readouterr().err
    assert main([*words, "train.freeze=['vision']", "train.recompute=1"]) == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    whole = as_json(Planner(request("tiny", "zero1", "train.recompute=1"), models["tiny"]))
    assert found["parameters"] == whole["parameters"]
    parts, memory, before = whole["parameters"], found["memory_bytes"], whole["memory_bytes"]
    trained = 1 - parts["vision"] / parts["total"]
    for kind, share in (("weights", 1), ("optimizer", trained)):
        assert memory[kind] == pytest.approx(share * before[kind])
    assert memory["activations"] < before["activations"] and found["offloaded_bytes"]["host"] == 4 * parts["vision"]
    assert found["flops_per_pair"]["vision"] == pytest.approx(whole["flops_per_pair"]["vision"] / 3, rel=0.01)
    assert found["flops_per_pair"]["image_decoder"] == whole["flops_per_pair"]["image_decoder"]
    gradients = [plan["step_seconds"]["exchanges"]["gradients"]["seconds"] for plan in (found, whole)]
    assert gradients[0] < gradients[1] and found["sent_bytes"] < whole["sent_bytes"]
