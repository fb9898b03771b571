"""CLIP_benchmark on an exported model: `python -m mvlm.export.clip_benchmark eval --model_type mvlm ...`.

The command is CLIP_benchmark's own (https://github.com/LAION-AI/CLIP_benchmark) with one more model type, for which
--pretrained is a folder that `mvlm export` wrote, and --model only a name for the table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoProcessor

from mvlm.export.auto import register

KIND = "mvlm"


class ClipLike(nn.Module):
    """The two encoders, under the method names that CLIP_benchmark calls."""

    def __init__(self, model: Any, pad_id: int) -> None:
        super().__init__()
        self.model, self.pad_id = model, pad_id

    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        return self.model.get_image_features(image_BCHW)

    def encode_text(self, text_BL: Tensor) -> Tensor:
        return self.model.get_text_features(text_BL, text_BL != self.pad_id)


def load_exported(
    model_name: str, pretrained: str, cache_dir: str | None, device: str | torch.device
) -> tuple[ClipLike, Callable[[Any], Tensor], Callable[[list[str]], Tensor]]:
    """The loader that CLIP_benchmark expects of a model type.

    Args:
        pretrained: the exported folder.

    Returns:
        The model; a function from an image to uint8 [3, H, W]; and one from sentences to token ids [B, L].
    """
    register()
    processor = AutoProcessor.from_pretrained(pretrained)
    model = ClipLike(AutoModel.from_pretrained(pretrained).eval(), processor.tokenizer.pad_token_id).to(device)
    return (
        model,
        lambda image: processor(images=[image])["pixel_values"][0],
        lambda texts: processor(text=list(texts))["input_ids"],
    )


def main() -> Any:
    """CLIP_benchmark's command; exits with 1 if it is not installed."""
    try:
        from clip_benchmark import cli, models
    except ModuleNotFoundError as error:
        sys.exit(f"mvlm: {error.name} is missing: pip install clip-benchmark.")
    models.TYPE2FUNC[KIND] = load_exported
    models.MODEL_TYPES.append(KIND)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
