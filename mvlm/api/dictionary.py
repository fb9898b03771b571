"""A patch dictionary, made from shards and saved in a file for `model.vision_weights`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from mvlm.data.samples.evaluation import EvalImages
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from mvlm.pretrained.dictionary import fit_dictionary
from mvlm.runtime.log import logger
from mvlm.runtime.storage import write_durably

log = logger(__name__)

PIXELS = 1 << 23
"""Pixels of all the pictures used together: 2,048 pictures of 64 x 64."""


def make_dictionary(shards: Sequence[str], out: Path, image_size: int) -> int:
    """Write a dictionary made from pictures spread evenly over all rows; the same shards give the same file.

    Args:
        image_size: side, in pixels, of the images that the model will see.

    Returns:
        The number of pictures it was made from.

    Raises:
        UserError: the shards cannot be read, nor any of their pictures, or the file cannot be written.
    """
    mixture = Mixture(shards)
    every = -(-len(mixture) * image_size**2 // PIXELS)
    images = EvalImages(mixture, len(mixture), image_size)
    seen = [image for row in range(0, len(mixture), every) if (image := _image(images, row)) is not None]
    if not seen:
        raise UserError(f"{', '.join(shards)}: no picture can be read: shard the corpus again.")
    dictionary = fit_dictionary(torch.cat(seen))
    tensors = {name: parameter.detach().contiguous() for name, parameter in dictionary.named_parameters()}
    try:
        write_durably(out, save(tensors))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}): give a path in a folder that can be.") from None
    return len(seen)


def _image(images: EvalImages, row: int) -> Tensor | None:
    """One image as NCHW; None if it is damaged, in which case training replaces it too."""
    try:
        return images.images([row])
    except UserError as error:
        log.warning(f"Left out: {error}")
        return None
