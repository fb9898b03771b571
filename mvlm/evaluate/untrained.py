"""What a model was not trained for, and is asked all the same."""

from __future__ import annotations

from typing import Literal

from mvlm.model.maskvlm import MaskVLM

WHAT = {"itm": "matching", "image": "reconstructing images", "text": "filling in words"}


def untrained(model: MaskVLM, name: Literal["itm", "image", "text"]) -> str:
    """Why answers that need an objective may mean nothing; "" where the last updates were with it."""
    if getattr(model.objectives, name):
        return ""
    because = f"its last updates were without {WHAT[name]} (objectives.{name} = 0)"
    return f"This model may know nothing of {WHAT[name]}: {because}; train it with that above 0."
