"""Parameter groups and the optimiser."""

from __future__ import annotations

from typing import Any

from torch import nn

from mvlm.config import Optim
from mvlm.model.encoders import Encoders

ENCODERS = ("vision.vit.", "text.")


def parameter_groups(model: Encoders, config: Optim) -> list[dict[str, Any]]:
    """AdamW groups: encoders and new modules at their own peak rates, norms and biases without weight decay.

    Each group has `name`, `params`, `lr`, `peak_lr` and `weight_decay`. A tied weight belongs to its encoder.
    """
    groups: dict[str, dict[str, Any]] = {}
    for part, lr in (("encoder", config.encoder_lr), ("new", config.lr)):
        for kind, decay in (("decay", config.weight_decay), ("no_decay", 0.0)):
            name = f"{part}_{kind}"
            groups[name] = {"name": name, "params": [], "lr": lr, "peak_lr": lr, "weight_decay": decay}
    for name, parameter in model.named_parameters():
        is_new = not name.startswith(ENCODERS) or name.endswith("mask_token")
        kind = "no_decay" if parameter.ndim <= 1 else "decay"
        groups[f"{'new' if is_new else 'encoder'}_{kind}"]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
