"""Warnings about what a model is asked to do and was not trained for."""

from __future__ import annotations

from typing import Literal

from mvlm.model.maskvlm import MaskVLM

WHAT = {"itm": "matching", "image": "reconstructing images", "text": "filling in words"}


def untrained(model: MaskVLM, name: Literal["itm", "image", "text"]) -> str:
    """Why answers that need an objective may mean nothing; "" if the last updates were made with it."""
    objectives, what = model.objectives, WHAT[name]
    if not getattr(objectives, name):
        because = f"its last updates were made without {what} (objectives.{name} = 0)"
        return f"This model may know nothing about {what}: {because}; train it with that above 0."
    if name != "itm" and objectives.reconstruct_from == "self":
        because = 'its last updates were made with objectives.reconstruct_from = "self"'
        return f"This model may know nothing about {what} with the help of the other modality: {because}."
    return ""
