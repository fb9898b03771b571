"""Which views of an image and of a text the objectives read: the whole one, the masked one, or both."""

from __future__ import annotations

from typing import Literal, NamedTuple

from mvlm.config.schema import Objectives


class Views(NamedTuple):
    """The views of one modality that its encoder has to compute; the others nobody reads."""

    whole: bool
    masked: bool

    @classmethod
    def read(cls, objectives: Objectives, modality: Literal["image", "text"]) -> Views:
        """By the objectives: reconstruction of the modality itself and of the other from it, and alignment."""
        itself, other = objectives.image, objectives.text
        if modality == "text":
            itself, other = other, itself
        aligned = bool(objectives.itc or objectives.itm or objectives.extra)
        masked_alignment = aligned and objectives.alignment_inputs == "masked"
        masked_context = bool(other) and objectives.hide == "both"
        return cls(
            whole=(aligned and not masked_alignment) or (bool(other) and not masked_context),
            masked=bool(itself) or masked_alignment or masked_context,
        )
