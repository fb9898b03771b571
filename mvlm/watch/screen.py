"""A run's status, drawn for a terminal."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mvlm.checkpoint.description import LOSSES
from mvlm.runtime.wording import counted
from mvlm.training.health.heartbeat import duration
from mvlm.watch.history import History, sparkline
from mvlm.watch.status import Status

COLOURS = {
    "waiting": "yellow",
    "starting": "yellow",
    "running": "green",
    "hanging": "red",
    "dead": "red",
    "stopped": "yellow",
    "done": "green",
}
NAMES = {
    "loss": "loss, all",
    "image": "masked image, L1",
    "text": "masked words",
    "itc": "contrast (ITC)",
    "itm": "matching (ITM)",
    "task": "task",
}
ACCURACIES = {"text": "word_accuracy", "itm": "itm_accuracy", "task": "task_accuracy"}
WIDTH, BARS = 90, 30
NAMED = 6  # the most ranks to list
PUT_OFF = "no evaluation yet"


def screen(status: Status, history: History) -> RenderableType:
    """The whole picture, WIDTH columns wide."""
    parts: list[RenderableType] = [_head(status)]
    if status.steps:
        parts += [Text(), _progress(status)]
    if status.metrics:
        parts += [Text(), _losses(status.metrics, history), Text(), _facts(status)]
    return Panel(Group(*parts), title=Text(status.run), border_style=COLOURS[status.state], width=WIDTH)


def _head(status: Status) -> Text:
    words = [f"attempt {status.attempt}"] if status.attempt else []
    if status.world:
        words.append(f"{counted(status.world, 'rank')} on {counted(status.hosts or 1, 'host')}")
    if status.zero_stage is not None:
        words.append(f"ZeRO {status.zero_stage}, {status.device}")
    if status.stage:
        words.append(status.stage)
    head = Text(status.state, style=f"bold {COLOURS[status.state]}")
    head.append("".join(f"  ·  {word}" for word in words), style="not bold default")
    if status.note:
        head.append(f"\n{status.note[0].upper()}{status.note[1:]}", style="not bold default")
    return head


def _progress(status: Status) -> Table:
    assert status.steps
    line = Table.grid(padding=(0, 2))
    share = status.step / status.steps
    left = f"{span(status.seconds_left)} left" if status.seconds_left is not None else ""
    bar = ProgressBar(total=status.steps, completed=status.step, width=36)
    line.add_row(bar, f"step {status.step:,} of {status.steps:,}", f"{share:.1%}", left)
    return line


def _losses(metrics: dict[str, Any], history: History) -> Table:
    table = Table.grid(padding=(0, 2))
    for column in range(4):
        table.add_column(justify="right" if column == 1 else "left")
    for name in LOSSES:
        if name in metrics:
            right = metrics.get(ACCURACIES.get(name, ""))
            share = f"{right:.1%} right" if right is not None else ""
            bars = Text(sparkline(history.curve(name), BARS), style="cyan")
            table.add_row(NAMES[name], number(metrics[name]), bars, share)
    return table


def _facts(status: Status) -> Table:
    metrics = status.metrics
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    speed = [f"{number(status.pairs_per_s)} pairs/s"]
    speed += [f"MFU {metrics['mfu']:.1%}"] if metrics.get("mfu") is not None else []
    speed += [f"{metrics['tflops']:.3g} TFLOP/s per rank"] if metrics.get("tflops") is not None else []
    table.add_row("speed", "  ·  ".join(speed))
    if metrics.get("data_wait") is not None:
        table.add_row("data", f"{metrics['data_wait']:.1%} of the time spent waiting")
    if metrics.get("memory_gb") is not None:
        table.add_row("memory", f"{metrics['memory_gb']:.1f} GB at the peak, rank 0")
    rates = [
        f"{name} {metrics[key]:.2e}" for key, name in (("lr", "new"), ("encoder_lr", "encoders")) if key in metrics
    ]
    table.add_row("learning rate", "  ·  ".join(rates))
    gradient = f"norm {number(metrics.get('grad_norm'))}"
    if metrics.get("temperature") is not None:
        gradient += f"  ·  temperature {metrics['temperature']:.4f}"
    if metrics.get("contrastive_bias") is not None:
        gradient += f"  ·  bias {metrics['contrastive_bias']:.2f}"
    table.add_row("gradient", gradient)
    images, batches = metrics.get("bad_images", 0), metrics.get("skipped", 0)
    table.add_row("left out", f"{counted(images, 'image')}  ·  {counted(batches, 'batch', 'batches')}")
    table.add_row("checkpoint", _checkpoint(status))
    table.add_row("ranks", _ranks(status))
    table.add_row("held out", _held_out(status.evaluation))
    return table


def _checkpoint(status: Status) -> str:
    if status.checkpoint is None or status.checkpoint_age_s is None:
        return "none yet"
    best = f"  ·  best step {status.best:,}" if status.best is not None else ""
    score = "".join(f", {name.removeprefix('eval/')} {number(value)}" for name, value in status.best_score.items())
    return f"step {status.checkpoint:,}, {span(status.checkpoint_age_s)} old{best}{score}"


def _ranks(status: Status) -> str:
    if status.state == "done":
        return f"all have ended, {span(status.still_s)} ago" if status.still_s is not None else "all have ended"
    metrics, alive = status.metrics, status.seen - len(status.quiet)
    words = f"{alive} of {status.world or status.seen} alive"
    if status.quiet:
        named = ", ".join(map(str, status.quiet[:NAMED]))
        words += f" (silent: {named}{', ...' if len(status.quiet) > NAMED else ''})"
    if status.still_s is not None:
        words += f", last sign {span(status.still_s)} ago"
    if (status.world or 1) > 1 and "slowest_rank" in metrics:
        words += f"\nslowest rank {metrics['slowest_rank']}; data {_spread(metrics, 'data_wait_s')} a step by rank"
    return words


def _spread(metrics: dict[str, Any], name: str) -> str:
    return f"{metrics.get(f'{name}_min', 0.0):.3f} to {metrics.get(f'{name}_max', 0.0):.3f} s"


def _held_out(evaluation: dict[str, Any]) -> str:
    found = {name.removeprefix("eval/"): value for name, value in evaluation.items() if name.startswith("eval/")}
    if not found:
        return PUT_OFF
    first = ["mean_recall"] if "mean_recall" in found else list(found)[:3]
    shown = (f"{name.replace('_', ' ')} {found[name]:.1%}" for name in first if found[name] is not None)
    return f"step {evaluation.get('step', 0):,}: {', '.join(shown)}"


def number(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.4g}"


def span(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3 h 20 min" or "2 d 4 h"."""
    if seconds < 7200:
        return duration(seconds)
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
