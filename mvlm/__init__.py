"""mvlm: pretraining of masked vision and language models at scale.

From Python: `mvlm.train("pictures/", out="runs/mine")` trains, `mvlm.load("runs/mine")` uses what was trained,
`mvlm.finetune("runs/mine", "vqa", "shards/vqa", out="runs/vqa")` fine-tunes it, `mvlm.load_finetuned("runs/vqa")`
answers, and `mvlm.open("shards")` reads shards.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvlm.api.finetune import finetune as finetune
    from mvlm.api.load import load as load
    from mvlm.api.shards import open as open
    from mvlm.api.tasks import load_finetuned as load_finetuned
    from mvlm.api.train import train as train

__version__ = "0.1.0"
__all__ = ["finetune", "load", "load_finetuned", "open", "train"]

_HOMES = {
    "finetune": "mvlm.api.finetune",
    "load": "mvlm.api.load",
    "load_finetuned": "mvlm.api.tasks",
    "open": "mvlm.api.shards",
    "train": "mvlm.api.train",
}
"""Imported on first use: commands import `mvlm`, and put off loading torch as long as they can."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mvlm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
