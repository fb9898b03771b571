"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from mvlm import __version__
from mvlm.checkpoint.integrity import read_state
from mvlm.checkpoint.layout import UNREADABLE, best_checkpoint, candidates, step_of
from mvlm.errors import UserError
from mvlm.report.charts import COLORS, STYLES, line_chart
from mvlm.report.compare import corpora, differences
from mvlm.report.facts import RunFacts
from mvlm.report.measure import Measured
from mvlm.runtime.wording import counted

LOSSES = {"loss": "Loss, total", "text": "Masked text", "image": "Masked image", "itc": "ITC", "itm": "ITM"}
ACCURACIES = {
    "word_accuracy": "Masked words right",
    "itm_accuracy": "Matches right",
    "task_accuracy": "Answers right",
    "temperature": "Temperature",
    "contrastive_bias": "Bias of the sigmoid",
}
SPEED = {
    "lr": "Learning rate of the new modules",
    "encoder_lr": "Learning rate of the encoders",
    "grad_norm": "Gradient norm",
    "pairs_per_s": "Pairs per second",
    "mfu": "Model FLOPs utilisation",
    "memory_gb": "Memory, GB",
}
SCORES = {
    "eval/image_to_text_r1": "Image to text R@1, ITC",
    "eval/text_to_image_r1": "Text to image R@1, ITC",
    "eval/image_to_text_reranked_r1": "Image to text R@1, re-ranked",
    "eval/text_to_image_reranked_r1": "Text to image R@1, re-ranked",
    "eval/mean_recall": "Mean recall",
    "eval/classification_top1": "Zero-shot classification, top 1",
    "eval/foils_itc": "True sentence above its foil, ITC",
    "eval/foils_itm": "True sentence above its foil, ITM",
    "eval/accuracy": "Accuracy on held-out rows",
    "eval/consistency": "Consistency on held-out rows",
}
SMALL = 128
"""Side, in pixels, below which a picture is stored losslessly and shown pixelated."""


def render(runs: Sequence[tuple[RunFacts, Measured]], now: datetime) -> str:
    """The page about one run, or several side by side."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"picture": picture, "percent": percent, "number": number, "probability": probability}
    facts = [facts for facts, _ in runs]
    names = _distinct_names(facts)
    return environment.get_template("template.html").render(
        runs=[
            {
                "name": name,
                "color": index % len(COLORS),
                "style": STYLES[index % len(STYLES)],
                "facts": of_run,
                "about": about(of_run),
                "corpora": corpora(of_run),
                "bad_images": int(max((line.get("bad_images") or 0 for line in of_run.metrics.values()), default=0)),
                "measured": measured,
            }
            for index, (name, (of_run, measured)) in enumerate(zip(names, runs, strict=True))
        ],
        differences=differences(facts) if len(facts) > 1 else [],
        losses=_charts(facts, LOSSES | ACCURACIES),
        scores=_charts(facts, SCORES),
        speed=_charts(facts, SPEED, log=("grad_norm",)),
        made=f"{now:%Y-%m-%d %H:%M}",
        version=__version__,
    )


def about(facts: RunFacts) -> list[tuple[str, str]]:
    """The header of a run: names and values that identify it."""
    described, data, model = facts.described, facts.data, facts.blueprint.model
    versions = ", ".join(f"{name} {version}" for name, version in described.get("versions", {}).items())
    hosts = sorted(set(described.get("hosts", [])))
    steps = f"{facts.last_step:,} of {described['steps']:,}" if "steps" in described else f"{facts.last_step:,}"
    stages = facts.stages
    seen = stages[-1]["samples"][1] if stages else _pairs_seen(facts)
    rows = [
        ("Last step written", f"{facts.written:%Y-%m-%d %H:%M %Z}"),
        ("Steps", f"{steps}, of {facts.global_batch} pairs; {counted(seen, 'pair')} seen"),
        ("Stages", "; ".join(map(_stage, stages))),
        ("Best checkpoint", _best(facts)),
        ("Training data", _data(data.train, described.get("rows"))),
        ("Evaluation data", _data(data.eval, None) if data.eval else "none"),
        ("Model", f"{model.vision} at {model.image_size} px, {model.text}"),
        ("Parameters", f"{described['parameters'] / 1e6:.1f} M" if "parameters" in described else ""),
        ("Ran on", _layout(described, hosts)),
        ("Versions", versions),
        ("Command", described.get("command", "")),
    ]
    return [(name, value) for name, value in rows if value]


def picture(pixels: np.ndarray, shows: str = "") -> Markup:
    """uint8 [H, W, 3] as an <img> with its content inline; `shows` is the alternative text."""
    image, out = Image.fromarray(pixels), io.BytesIO()
    if max(image.size) < SMALL:
        kind, style = "png", Markup(' class="small"')
        image.save(out, "PNG", optimize=True)
    else:
        kind, style = "webp", Markup()
        image.save(out, "WEBP", quality=85)
    text = base64.b64encode(out.getvalue()).decode()
    return Markup('<img{} alt="{}" src="data:image/{};base64,{}">').format(style, shows, kind, text)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def probability(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "<1 %"


def number(value: float) -> str:
    return f"{value:.3f}"


def _stage(line: dict[str, Any]) -> str:
    """A stage of the ledger: its updates, and the epochs of each of its data sets."""
    drawn = ", ".join(
        f"{' and '.join(part['data'])} epochs {part['from'] / part['per_epoch']:.2f} to "
        f"{part['to'] / part['per_epoch']:.2f}"
        for part in line["drawn"]
    )
    name = f" ({line['name']})" if line["name"] else ""
    return f"{line['stage']}{name}: steps {line['steps'][0]:,} to {line['steps'][1]:,}, {drawn}"


def _pairs_seen(facts: RunFacts) -> int:
    """Pairs counted by the latest checkpoint, since the global batch may have changed, and those seen after it."""
    try:
        state = read_state(candidates(facts.folder).first)
    except (*UNREADABLE, UserError):
        return facts.last_step * facts.global_batch
    return state.samples_seen + (facts.last_step - state.step) * facts.global_batch


def _best(facts: RunFacts) -> str:
    """The best checkpoint, and its value of eval.select."""
    folder = best_checkpoint(facts.folder)
    if folder is None:
        return ""
    step, metric = step_of(folder), facts.eval.select
    value = facts.metrics.get(step, {}).get(metric)
    return f"step {step:,}" + (f", {metric} {value:.4g}" if value is not None else "")


def _charts(runs: Sequence[RunFacts], titles: dict[str, str], log: Sequence[str] = ()) -> list[Markup]:
    charts = (line_chart(title, [run.curve(key) for run in runs], key in log) for key, title in titles.items())
    return [chart for chart in charts if chart is not None]


def _distinct_names(runs: Sequence[RunFacts]) -> list[str]:
    """The folders' names, or their paths if two have the same name."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _data(folders: Sequence[str], rows: int | None) -> str:
    return ", ".join(folders) + (f" ({counted(rows, 'image')})" if rows else "")


def _layout(described: dict[str, Any], hosts: Sequence[str]) -> str:
    parts = [f"{described['world']} ranks" if described.get("world", 1) > 1 else "one process"]
    if "accumulation" in described:
        parts.append(f"{described['accumulation']} × {described['micro_batch']} pairs each a step")
    if "zero_stage" in described:
        parts.append(f"ZeRO {described['zero_stage']}")
    return ", ".join([*parts, *([str(described["device"])] if "device" in described else []), *hosts])
