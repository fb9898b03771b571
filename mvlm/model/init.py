"""The weights of another run to start from: as they are, positions fitted to another image size, new heads fresh."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from mvlm.errors import UserError
from mvlm.model.encoders import Encoders
from mvlm.model.task import HEAD
from mvlm.model.weights import WEIGHTS, open_tensors

POSITIONS = "vision.vit.pos_embed"


@dataclass
class Taken:
    """What became of a checkpoint's weights.

    Attributes:
        copied: parameters that hold the checkpoint's values.
        fresh: those of the new head.
        left: the checkpoint's modules that this model does not have.
        positions: image positions there and here, where they were interpolated.
    """

    checkpoint: Path
    copied: int = 0
    fresh: int = 0
    left: set[str] = field(default_factory=set)
    positions: tuple[int, int] | None = None

    def __str__(self) -> str:
        parts = [f"{self.copied} tensors taken"]
        if self.positions:
            parts.append(f"position embeddings interpolated from {self.positions[0]} to {self.positions[1]} patches")
        if self.fresh:
            parts.append(f"{self.fresh} of the head new")
        if self.left:
            parts.append(f"{', '.join(sorted(self.left))} left behind")
        return f"Weights of {self.checkpoint}: {'; '.join(parts)}."


def take_weights(model: Encoders, checkpoint: Path) -> Taken:
    """Fill a model with the weights of a run that may have been of another task and image size.

    Raises:
        UserError: a parameter beyond the head is missing or of another shape.
    """
    taken, parameters = Taken(checkpoint), dict(model.named_parameters())
    with open_tensors(checkpoint, WEIGHTS) as files:
        taken.left = {name.split(".")[0] for name in files} - {name for name, _ in model.named_children()}
        for name, parameter in parameters.items():
            tensor = files[name].get_tensor(name) if name in files else None
            if name == POSITIONS and tensor is not None and tensor.shape != parameter.shape:
                tensor = _interpolated(model, tensor)
                taken.positions = (
                    _patches(model, files[name].get_slice(name).get_shape()[1]),
                    model.grid[0] * model.grid[1],
                )
            if tensor is not None and tensor.shape == parameter.shape:
                parameter.data.copy_(tensor)
                taken.copied += 1
            elif name.startswith(HEAD):
                taken.fresh += 1
            else:
                there = "lacks it" if tensor is None else f"has it of shape {tuple(tensor.shape)}"
                raise UserError(
                    f"{checkpoint} cannot be started from: {name} has shape {tuple(parameter.shape)} here and the "
                    f"checkpoint {there}; give the same [model] and tokenizer as that run's config.toml."
                )
    return taken


def _interpolated(model: Encoders, position_1SD: Tensor) -> Tensor:
    """Bicubic, as timm fits the positions of pretrained weights; those of CLS and its like stay."""
    vit = model.vision.vit
    return resample_abs_pos_embed(position_1SD, list(model.grid), num_prefix_tokens=_prefix(vit))


def _patches(model: Encoders, positions: int) -> int:
    return positions - _prefix(model.vision.vit)


def _prefix(vit: object) -> int:
    return 0 if getattr(vit, "no_embed_class", False) else int(vit.num_prefix_tokens)  # type: ignore[attr-defined]
