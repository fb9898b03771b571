"""What pretraining and every task have in common: the two encoders and the two cross-modality encoders."""

from __future__ import annotations

from torch import Tensor, nn

from mvlm.config.schema import Model
from mvlm.model.fusion import CrossEncoder
from mvlm.model.text import TextEncoder
from mvlm.model.vision import VisionEncoder


class Encoders(nn.Module):
    """Built from a run's configuration by `mvlm.pretrained.encoders.build_model`."""

    def __init__(self, vision: VisionEncoder, text: TextEncoder, config: Model) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.cross_image = CrossEncoder(vision.width, text.width, config.cross_depth, config)
        self.cross_text = CrossEncoder(text.width, vision.width, config.cross_depth, config)

    def encode_image(self, image_BCHW: Tensor, patch_mask_BN: Tensor | None = None) -> Tensor:
        """uint8 images, masked patches True -> BSD."""
        return self.vision(image_BCHW, patch_mask_BN)

    def encode_text(self, text_BL: Tensor, valid_BL: Tensor) -> Tensor:
        """Token ids -> BLD."""
        return self.text(text_BL, valid_BL)

    def fuse_image(self, queries_BSD: Tensor, text_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """Image tokens that have read the text -> BSD."""
        return self.cross_image(queries_BSD, text_BLD, context_valid_BU=valid_BL)

    def fuse_text(self, queries_BLD: Tensor, image_BSD: Tensor, valid_BL: Tensor) -> Tensor:
        """Text tokens that have read the image -> BLD."""
        return self.cross_text(queries_BLD, image_BSD, valid_BL=valid_BL)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.vision.grid

    def normalize(self, image_BCHW: Tensor) -> Tensor:
        return self.vision.normalize(image_BCHW)

    def patchify(self, image_BCHW: Tensor) -> Tensor:
        return self.vision.patchify(image_BCHW)

    def unpatchify(self, patches_BNQ: Tensor) -> Tensor:
        return self.vision.unpatchify(patches_BNQ)
