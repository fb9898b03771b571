"""The weights that a run starts from, and the list of what came from where."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mvlm.checkpoint.tensors import is_averaged, open_weights
from mvlm.config.schema import Config
from mvlm.errors import UserError
from mvlm.model.encoders import Encoders
from mvlm.model.filling import Filled, fit_image_positions, fit_text_positions
from mvlm.model.finetune import HEAD
from mvlm.model.foreign import read_tensors
from mvlm.model.names import WORDS, image_encoder
from mvlm.model.vision import MASK_TOKEN


@dataclass(frozen=True)
class Started:
    """What a run's model started from.

    Attributes:
        filled: by part, those with weights of somebody's.
        fresh: parameters of all other parts, with random values.
    """

    filled: tuple[Filled, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        parts = sorted({name.split(".")[0] for name in self.fresh})
        new = [f"New: {len(self.fresh)} tensors of {', '.join(parts)}."] if self.fresh else []
        return "\n".join([*map(str, self.filled), *new])

    def to_json(self) -> str:
        content = {"parts": [filled.to_json() for filled in self.filled], "fresh": self.fresh}
        return json.dumps(content, indent=1)


def started(model: Encoders) -> Started | None:
    """Of a model built by its configuration; None where all its weights are random, as was asked for."""
    encoders = {"vision.vit.": model.vision.filled, "text.": model.text.filled}
    theirs = tuple(prefix for prefix, filled in encoders.items() if filled)
    if not theirs:
        return None
    has_token = model.vision.filled is not None and MASK_TOKEN in model.vision.filled.matched
    fresh = [
        name
        for name, _ in model.named_parameters()
        if not name.startswith(theirs) or (name.endswith(MASK_TOKEN) and not has_token)
    ]
    return Started(tuple(filter(None, encoders.values())), tuple(fresh))


def with_encoders_of(config: Config, place: str) -> Config:
    """The configuration with each encoder that a checkpoint of others holds taken from there.

    Raises:
        UserError: it holds none.
    """
    tensors = read_tensors(place)
    found: dict[str, Any] = {}
    if image_encoder(tensors):
        found["vision_weights"] = place
    if any(name.endswith(WORDS) for name in tensors):
        found["text_weights"] = place
    if not found:
        raise UserError(
            f"checkpoint.init={place} holds no encoder of a known kind (its tensors begin with "
            f"{', '.join(list(tensors)[:2])}): give a run, or a checkpoint of timm, transformers, MAE, SimMIM, "
            "ALBEF or BLIP."
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **found))


def take_weights(model: Encoders, checkpoint: Path) -> Started:
    """Fill a model with the weights of a run of ours that may have been of another task and image size.

    Where the run kept an average of its weights (`train.ema`), that is what is taken.

    Raises:
        UserError: a parameter beyond the head is missing or of another shape, or one is no finite number.
    """
    filled = Filled("model", f"{checkpoint}{' (its averaged weights)' if is_averaged(checkpoint) else ''}")
    with open_weights(checkpoint) as files:
        filled.left = sorted({name.split(".")[0] for name in files} - {name for name, _ in model.named_children()})
        for name, parameter in model.named_parameters():
            tensor = files[name].weight(name) if name in files else None
            there, here = None if tensor is None else tuple(tensor.shape), tuple(parameter.shape)
            if tensor is not None and there != here:
                tensor = _fitted(model, name, tensor)
            if tensor is not None and tuple(tensor.shape) == here:
                parameter.data.copy_(tensor)
                if there == here or there is None:
                    filled.matched.append(name)
                else:
                    filled.resized[name] = there, here
            elif name.startswith(HEAD):
                filled.fresh.append(name)
            else:
                found = "lacks it" if there is None else f"has it of shape {there}"
                raise UserError(
                    f"{checkpoint} cannot be started from: {name} has shape {here} here and the checkpoint {found}; "
                    "give the same [model] and tokenizer as that run's config.toml."
                )
    return Started((filled,), ())


def _fitted(model: Encoders, name: str, tensor: Tensor) -> Tensor | None:
    """Positions for this model's number of patches or words; None where it is nothing of that kind."""
    fits = {
        "vision.vit.": fit_image_positions(model.vision.vit, model.grid),
        "text.model.": fit_text_positions(model.text.model, model.text.first_position),
    }
    return next(
        (fit(name.removeprefix(prefix), tensor) for prefix, fit in fits.items() if name.startswith(prefix)), None
    )
