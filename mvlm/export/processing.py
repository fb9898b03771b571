"""Processors from pictures and sentences to model inputs, with transformers' interface."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

from mvlm.data.images.upright import resized, upright

PAD_MULTIPLE = 8
"""Text is padded to a multiple of this, as in training."""


class MaskVLMImageProcessor(BaseImageProcessor):
    """Images to uint8 squares; the model normalises them itself.

    Args:
        size: pixels of a side.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(self, size: int = 224, **others: Any) -> None:
        super().__init__(**others)
        self.size = size

    def __call__(  # type: ignore[override]
        self, images: Any, return_tensors: str | None = "pt", **_: Any
    ) -> BatchFeature:
        """`pixel_values`, uint8 [B, 3, size, size], of an image or a list: Pillow's, or uint8 arrays [H, W, 3].

        Raises:
            ValueError: there are none, or one is something else.
        """
        listed = images if isinstance(images, (list, tuple)) else [images]
        if not listed:
            raise ValueError("There are no images: give at least one.")
        views = [np.asarray(resized(upright(_opened(each)), self.size)).transpose(2, 0, 1) for each in listed]
        return BatchFeature({"pixel_values": np.stack(views)}, tensor_type=return_tensors)

    preprocess = __call__


class MaskVLMProcessor(ProcessorMixin):
    """An image processor and a tokenizer.

    Args:
        text_length: the most tokens in a sentence, including special ones.
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, text_length: int = 30, **others: Any
    ) -> None:
        super().__init__(image_processor, tokenizer, **others)
        self.text_length = text_length

    def __call__(
        self, images: Any = None, text: Any = None, return_tensors: str | None = "pt", **_: Any
    ) -> BatchFeature:
        """`pixel_values` of images, and `input_ids` and `attention_mask` of sentences, padded as in training.

        Raises:
            ValueError: `images` or `text` is an empty list, or contains something else.
        """
        given: dict[str, Any] = {}
        if images is not None:
            given |= self.image_processor(images, return_tensors=return_tensors)
        if text is not None:
            sentences = _sentences(text)
            cut = self.tokenizer(sentences, truncation=True, max_length=self.text_length)["input_ids"]
            given |= BatchFeature(self._padded([list(ids) for ids in cut]), tensor_type=return_tensors)
        return BatchFeature(given)

    def _padded(self, texts: list[list[int]]) -> dict[str, Any]:
        longest = max(map(len, texts))
        length = min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, self.text_length)
        pad = self.tokenizer.pad_token_id
        ids = [text + [pad] * (length - len(text)) for text in texts]
        mask = [[1] * len(text) + [0] * (length - len(text)) for text in texts]
        return {"input_ids": ids, "attention_mask": mask}


def _opened(image: Any) -> Image.Image:
    if not isinstance(image, Image.Image):
        image = _from_array(np.asarray(image), type(image).__name__)
    if 0 in image.size:
        raise ValueError(f"An image of {image.width} x {image.height} pixels shows nothing: give one that has some.")
    return image


def _from_array(pixels: np.ndarray, kind: str) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise ValueError(
            f"An image is one of Pillow's or an array of uint8, height x width x 3 channels; this is of type {kind}, "
            f"{pixels.dtype}, with shape {pixels.shape}: convert it."
        )
    return Image.fromarray(pixels)


def _sentences(text: Any) -> list[str]:
    sentences = list(text) if isinstance(text, Iterable) and not isinstance(text, (str, bytes)) else [text]
    if not sentences:
        raise ValueError("There are no sentences: give at least one.")
    for each in sentences:
        if not isinstance(each, str):
            kind = type(each).__name__
            raise ValueError(f"A sentence is a string; this is of type {kind}: give a string or a list of strings.")
    return sentences
