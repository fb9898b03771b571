"""Writes out an image encoder that is named by a folder of timm's, so that a run no longer needs the folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from mvlm.config.schema import Model

SET_BY_THE_MODEL = ("img_size", "num_classes", "global_pool")
"""Arguments in such a folder for which every model of ours has its own value."""


def written_out(model: Model) -> Model:
    """The same model by its architecture, arguments and place of weights, if `model.vision` is a folder that timm has
    written; timm will say what is wrong with any other."""
    if not model.vision:
        return model  # a mistake, reported elsewhere, and not the current folder
    folder = Path(model.vision)
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture, own = described["architecture"], described.get("model_args", {})
        known = described.get("pretrained_cfg", described)
        pixels = {key: known[key] for key in ("mean", "std") if key in known}
        overlay = pixels | model.vision_args.get("pretrained_cfg_overlay", {})
        arguments = {key: value for key, value in own.items() if key not in SET_BY_THE_MODEL} | model.vision_args
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return model
    return dataclasses.replace(
        model,
        vision=architecture,
        vision_args=arguments | {"pretrained_cfg_overlay": overlay},
        vision_weights=str(folder) if model.vision_weights == "pretrained" else model.vision_weights,
    )
