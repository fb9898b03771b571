"""Pictures and sentences to what the model reads, as transformers' users call it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

from mvlm.data.images.upright import resized, upright

PAD_MULTIPLE = 8
"""As in training: text is padded to a multiple of this."""


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
        """`pixel_values`, uint8 [B, 3, size, size], of an image or a list: Pillow's, or uint8 arrays [H, W, 3]."""
        listed = images if isinstance(images, (list, tuple)) else [images]
        views = [np.asarray(resized(upright(_opened(each)), self.size)).transpose(2, 0, 1) for each in listed]
        return BatchFeature({"pixel_values": np.stack(views)}, tensor_type=return_tensors)

    preprocess = __call__


class MaskVLMProcessor(ProcessorMixin):
    """An image processor and a tokenizer.

    Args:
        text_length: tokens of a sentence at most, special ones included.
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, text_length: int = 30, **others: Any
    ) -> None:
        super().__init__(image_processor, tokenizer, **others)
        self.text_length = text_length

    def __call__(self, images: Any = None, text: Any = None, **_: Any) -> BatchFeature:
        """`pixel_values` of images, and `input_ids` and `attention_mask` of sentences, padded as in training."""
        given: dict[str, Any] = {}
        if images is not None:
            given |= self.image_processor(images)
        if text is not None:
            sentences = [text] if isinstance(text, str) else list(text)
            cut = self.tokenizer(sentences, truncation=True, max_length=self.text_length)["input_ids"]
            given |= self._padded([list(ids) for ids in cut])
        return BatchFeature(given)

    def _padded(self, texts: list[list[int]]) -> dict[str, Any]:
        longest = max(map(len, texts))
        length = min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, self.text_length)
        pad = self.tokenizer.pad_token_id
        ids = [text + [pad] * (length - len(text)) for text in texts]
        mask = [[1] * len(text) + [0] * (length - len(text)) for text in texts]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _opened(image: Any) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
