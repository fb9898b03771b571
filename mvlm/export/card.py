"""The model card, which people read before they use a model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import mvlm
from mvlm.checkpoint.average import PARTS
from mvlm.checkpoint.description import described_in
from mvlm.checkpoint.integrity import read_step
from mvlm.checkpoint.layout import BEST, CHECKPOINTS, WEIGHTS, find_checkpoint
from mvlm.checkpoint.selection import PUT_OFF
from mvlm.checkpoint.tensors import is_averaged, open_tensors
from mvlm.config.schema import Model
from mvlm.export.configuration import NEEDED
from mvlm.report.facts import RunFacts, read_facts, read_json

PURPOSE = {
    "pretrain": "pretrained on images and their sentences",
    "retrieval": "fine-tuned for retrieval",
    "vqa": "fine-tuned to answer questions about an image",
    "nlvr2": "fine-tuned to judge sentences about two images",
    "entailment": "fine-tuned to judge whether an image entails a sentence",
}
EXAMPLE = {"vqa": "what colour is the bus?", "nlvr2": "both show a bus", "entailment": "a bus stands still"}


def model_card(run: Path, name: str) -> str:
    """README.md for the model of a run or of one of its checkpoints.

    Raises:
        UserError: there is no such run, or a file of it is damaged.
    """
    checkpoint = find_checkpoint(run)
    parts = json.loads((checkpoint / PARTS).read_text(encoding="utf-8")) if (checkpoint / PARTS).exists() else []
    # A soup may lie in a run's folder, whose numbers are those of other weights.
    facts = read_facts(checkpoint if parts else checkpoint.parent.parent, described_in(checkpoint))
    blueprint, task = facts.blueprint, facts.blueprint.task
    with open_tensors(checkpoint, WEIGHTS) as tensors:
        parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
    step = read_step(checkpoint)
    pages = Environment(loader=PackageLoader("mvlm.export", "."), undefined=StrictUndefined, autoescape=False)
    return pages.get_template("card.md").render(
        name=name,
        packages=" ".join(("torch", "transformers", "pillow", *NEEDED)),
        pipeline="visual-question-answering" if task.name == "vqa" else "zero-shot-image-classification",
        parameters=f"{parameters:,}",
        purpose=PURPOSE[task.name],
        labelled=task.is_labelled,
        task=task.name,
        example=EXAMPLE.get(task.name, ""),
        version=mvlm.__version__,
        step=f"{step:,}",
        steps=f"{facts.described['steps']:,}",
        averaged=is_averaged(checkpoint),
        parts=len(parts),
        data=_data(facts),
        text_length=blueprint.text_length,
        image_size=blueprint.model.image_size,
        recipe=_recipe(facts),
        numbers=_numbers(facts, step),
        protocol=_protocol(facts, step),
        started=_started(blueprint.model, facts.settings["checkpoint.init"]),
    )


def _data(facts: RunFacts) -> list[str]:
    data = facts.data
    names = [f"trained on {_place(place)}" for place in data.train]
    names += [f"held out: {_place(place)}" for place in data.eval]
    return [*names, f"{facts.described['rows']:,} rows per epoch"]


def _recipe(facts: RunFacts) -> dict[str, Any]:
    blueprint, settings, described = facts.blueprint, facts.settings, facts.described
    losses = {name: blueprint.objectives.weight(name) for name in ("image", "text", "itc", "itm")}
    recipe = {
        "losses": ", ".join(f"{name} {weight:g}" for name, weight in losses.items() if weight) or blueprint.task.name,
        "global batch": facts.global_batch,
        "learning rate, encoders'": f"{settings['optim.lr']:g}, {settings['optim.encoder_lr']:g}",
        "weight decay": settings["optim.weight_decay"],
        "image encoder": _encoder(blueprint.model.vision),
        "text encoder": _encoder(blueprint.model.text),
        "ranks, ZeRO stage": f"{described['world']}, {described['zero_stage']}",
        "device": described["device"],
        "seed": blueprint.seed,
    }
    return recipe | {name: number for name, number in described["versions"].items() if name in ("torch", "deepspeed")}


def _numbers(facts: RunFacts, step: int) -> dict[str, str]:
    """The run's own evaluation of the weights of this step, and retrieval as `mvlm evaluate` wrote it to its folder."""
    line = facts.metrics.get(step, {})
    numbers = {key: f"{value:.4g}" for key, value in line.items() if key.startswith("eval/") and key != PUT_OFF}
    for direction in ("image_to_text", "text_to_image"):
        for ranked, found in (_retrieval(facts, step).get(direction) or {}).items():
            if found:
                recalls = ", ".join(f"{100 * found[key]:.1f}" for key in ("r1", "r5", "r10"))
                numbers[f"{direction.replace('_', ' ')} by {ranked}: R@1, R@5, R@10, %"] = recalls
    return numbers


def _retrieval(facts: RunFacts, step: int) -> dict[str, Any]:
    """What `mvlm evaluate` wrote to the run's folder, if it is for the weights of this step."""
    found = read_json(facts.folder / "retrieval.json") or {}
    return found if found.get("step") == step else {}


def _protocol(facts: RunFacts, step: int) -> str:
    """What retrieval was measured on, and how: recall depends on both; it need not be the run's held-out data."""
    found = _retrieval(facts, step)
    if "protocol" not in found:
        return ""
    return f"Retrieval, R@1, R@5, R@10, on {', '.join(map(_place, found['data']))}: {found['protocol']}"


def _place(place: str) -> str:
    """The last parts of the path, the only ones that mean anything elsewhere."""
    return f"`{'/'.join(Path(place).parts[-2:])}`"


def _started(model: Model, init: str) -> str:
    if init:
        place = Path(init)
        needs_run = place.name == BEST or place.parent.name == CHECKPOINTS  # a step alone means nothing elsewhere
        named = [part for part in place.parts if part != CHECKPOINTS]
        return f"the run or checkpoint `{'/'.join(named[-2 if needs_run else -1 :])}`"
    if model.vision_weights == model.text_weights == "random":
        return "none, both began from random weights"
    parts = []
    for kind, name, weights in (
        ("image", model.vision, model.vision_weights),
        ("text", model.text, model.text_weights),
    ):
        source = {"pretrained": name, "random": "random weights"}.get(weights, weights)
        parts.append(f"{kind}, {_encoder(source)}")
    return "; ".join(parts)


def _encoder(source: str) -> str:
    """The name of an encoder or of its weights: for a file or folder on this machine, without its path."""
    return Path(source).name if source.startswith("/") else source
