"""What stands on the encoders: contrastive projections and temperature, matching, word and pixel prediction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvlm.config import Model
from mvlm.model.cross import CrossEncoder, init_linear


class Projection(nn.Module):
    """CLS feature to a unit vector of the contrastive space, in fp32."""

    def __init__(self, width: int, config: Model) -> None:
        super().__init__()
        self.linear = nn.Linear(width, config.contrastive_width)
        init_linear(self.linear, config.cross_init_std)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        return F.normalize(self.linear(tokens_BLD[:, 0]).float(), dim=-1)


class Temperature(nn.Module):
    """The learned temperature of the contrastive softmax, clamped."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.bounds = config.temperature_min, config.temperature_max
        self.value = nn.Parameter(torch.full((1,), config.temperature))

    def forward(self) -> Tensor:
        # The gradient passes the clamp: a value that has left the bounds could not come back otherwise.
        value = self.value.float()
        return value + (value.clamp(*self.bounds) - value).detach()


class MatchHead(nn.Module):
    """The two cross encoders' CLS outputs, multiplied, to "no match" / "match"."""

    def __init__(self, image_width: int, text_width: int, config: Model) -> None:
        super().__init__()
        self.align = nn.Identity() if image_width == text_width else nn.Linear(text_width, image_width)
        self.classifier = nn.Linear(image_width, 2)
        self.apply(lambda module: init_linear(module, config.cross_init_std))

    def forward(self, image_D: Tensor, text_D: Tensor) -> Tensor:
        """... x D of each -> ... x 2."""
        return self.classifier(image_D * self.align(text_D)).float()


class WordHead(nn.Module):
    """One fully connected classifier over the vocabulary; its weight starts as, or is, the text encoder's embedding."""

    def __init__(self, embedding: nn.Embedding, pretrained: bool, config: Model) -> None:
        super().__init__()
        vocabulary, width = embedding.weight.shape
        self.classifier = nn.Linear(width, vocabulary)
        init_linear(self.classifier, config.cross_init_std)
        if config.tie_classifier:
            self.classifier.weight = embedding.weight
        elif config.classifier_init == "embedding" or (config.classifier_init == "auto" and pretrained):
            self.classifier.weight.data.copy_(embedding.weight.data)

    def forward(self, tokens_MD: Tensor) -> Tensor:
        """... x D -> ... x V."""
        return self.classifier(tokens_MD)


class ImageDecoder(nn.Module):
    """Cross-attention blocks that read the whole text, then a linear layer to the values of each patch."""

    def __init__(self, width: int, text_width: int, patch: int, config: Model) -> None:
        super().__init__()
        self.blocks = CrossEncoder(width, text_width, config.decoder_depth, config)
        self.pixels = nn.Linear(width, 3 * patch * patch)
        init_linear(self.pixels, config.cross_init_std)

    def forward(self, fused_BSD: Tensor, text_BLD: Tensor, valid_BL: Tensor, patch_BC: Tensor | None = None) -> Tensor:
        """BSD -> BNQ, or BCQ of the patches `patch_BC` alone; CLS takes part in the blocks and predicts nothing."""
        if patch_BC is not None:
            return self.pixels(self.blocks(fused_BSD, text_BLD, context_valid_BT=valid_BL, keep_BC=patch_BC + 1))
        return self.pixels(self.blocks(fused_BSD, text_BLD, context_valid_BT=valid_BL)[:, 1:])
