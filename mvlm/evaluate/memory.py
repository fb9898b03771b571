"""How much memory evaluation takes up at once, from one setting.

Besides the weights, a rank's device holds the contrastive features of all items, which grow only with their number, and
then, in turn, either a tile of similarities, or token features to be matched and the pass that matches them.

COCO's 5,000 test images at 384 x 384 with 25,000 captions, ViT-B/16 and RoBERTa-base in fp32, `memory_gb` = 4:

    contrastive features     30,000 x 256 x 4 bytes                                     0.03 GB
    a tile of similarities   at most half of the rest: 1,240 images x 25,000 x 64       2.0 GB
    token features           half of the rest: 64 images x 577 x 768 x 4, 0.11 GB,
                             and 20,300 texts x 30 x 768 x 4                            2.0 GB
    a pass                   half of the rest: 64 pairs x 16 x (577 + 30) x 768 x 4     1.9 GB

so that with the weights of 335 million parameters, 1.3 GB, a GPU needs 5.4 GB; `memory_gb` = 8 fits one of 16 GB.
With two blocks of texts each image is encoded twice; a larger `memory_gb` holds all texts at once.
The host keeps the candidates: 16 bytes for each of the 30,000 x 256, 0.12 GB, and a few times as much to sort them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mvlm.errors import UserError
from mvlm.model.maskvlm import MaskVLM

SIMILARITY_BYTES = 64
"""A similarity, its place in the order, and what a stable sort needs besides."""

PASS_COPIES = 16
"""Copies of its tokens that a pair or an item takes in a forward pass: keys, values, the feed-forward's activations."""


@dataclass(frozen=True)
class Sizes:
    """What is held at once."""

    batch: int  # images, texts or pairs in a forward pass
    similarities: int
    texts: int  # texts whose token features are held, a multiple of the batch or all


@dataclass(frozen=True)
class Tokens:
    """Bytes of the token features of one image and of one text of the greatest length, and of a contrastive feature."""

    image: int
    text: int
    contrastive: int

    @classmethod
    def of(cls, model: MaskVLM, text_length: int) -> Tokens:
        rows, columns = model.grid
        bytes_each = next(model.parameters()).element_size()
        return cls(
            image=(rows * columns + 1) * model.vision.width * bytes_each,
            text=text_length * model.text.width * bytes_each,
            contrastive=4 * model.image_projection.linear.out_features,
        )


def sizes(memory_gb: float, batch: int, images: int, texts: int, tokens: Tokens) -> Sizes:
    """Fill `memory_gb` (of 1e9 bytes), with at most `batch` items in a pass.

    Raises:
        UserError: it does not hold one pair.
    """
    budget = memory_gb * 1e9 - (images + texts) * tokens.contrastive
    half = max(0.0, budget) / 2
    fits = int(half / (PASS_COPIES * (tokens.image + tokens.text)))
    batch = min(batch, fits)
    held = int((half - batch * tokens.image) / tokens.text)
    if batch < 1 or held < batch:
        one = 2 * PASS_COPIES * (tokens.image + tokens.text) + (images + texts) * tokens.contrastive
        raise UserError(
            f"eval.memory_gb {memory_gb:g} does not hold one pair beside the features of {images} images and {texts} "
            f"texts: give {one * 1.01 / 1e9:.3g} or more."
        )
    return Sizes(batch, max(1, int(half / SIMILARITY_BYTES)), min(texts, held // batch * batch))
