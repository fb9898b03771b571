"""The sizes at which steps are measured: a model and a batch of synthetic pairs for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from mvlm.batch import Batch
from mvlm.config.load import load_config
from mvlm.config.schema import Config
from mvlm.data.loading.collate import collate_pairs
from mvlm.data.samples.bpe import SPECIAL_TOKENS
from mvlm.data.samples.captions import FINE, Rounding
from mvlm.data.samples.pairs import Pair
from mvlm.model.initialization import InitialWeights
from mvlm.model.masking import Purpose, generator, patch_mask, token_mask
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.encoders import build_model
from mvlm.training.engine import Engine
from mvlm.training.parallelize import parallelize

ROOT = Path(__file__).parents[2]
SHORTEST = 8  # tokens of a synthetic caption, including the two special ones
BERT_WORDS, ROBERTA_WORDS = 30522, 50265


@dataclass(frozen=True)
class Size:
    """A model and its batch.

    Attributes:
        overrides: of mvlm/configs/base.toml.
        pairs: in a batch.
        padding: tokens that the naive step pads its text to.
    """

    name: str
    overrides: tuple[str, ...]
    vocabulary: int
    pairs: int
    padding: int = 50

    @property
    def config(self) -> Config:
        common = ["model.vision=vit_base_patch16_224", "model.vision_weights=random"]
        common += ["model.text=roberta", "model.text_weights=random"]
        return load_config(ROOT / "mvlm/configs/base.toml", [*common, *self.overrides])


def overrides(width: int, depth: int, cross_depth: int, vision: str = "") -> tuple[str, ...]:
    heads = max(2, width // 64)
    text = f"hidden_size={width}, num_hidden_layers={depth}, num_attention_heads={heads}"
    return (
        f"model.vision_args={{embed_dim={width}, depth={depth}, num_heads={heads}{vision}}}",
        f"model.text_args={{{text}, intermediate_size={4 * width}, max_position_embeddings=64}}",
        f"model.cross_depth={cross_depth}",
        f"model.decoder_depth={cross_depth}",
        f"model.cross_heads={heads}",
    )


SIZES = {
    size.name: size
    for size in (
        Size(
            "tiny",
            (*overrides(64, 2, 2, vision=", patch_size=8"), "model.image_size=32", "objectives.itm_group=4"),
            vocabulary=500,
            pairs=4,
        ),
        Size("small", overrides(384, 6, 3), vocabulary=BERT_WORDS, pairs=16),
        Size("full", overrides(768, 12, 3), vocabulary=ROBERTA_WORDS, pairs=128),
    )
}


def build(size: Size) -> MaskVLM:
    """The model with random fp32 weights, the same at each call."""
    torch.manual_seed(0)
    words = {word: place for place, word in enumerate([*SPECIAL_TOKENS, *map(str, range(size.vocabulary - 5))])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        mask_token="<mask>",
    )
    return build_model(size.config.blueprint, tokenizer)


def engine_for(
    model: MaskVLM, config: Config, resolved: dict[str, Any], weights: InitialWeights | None = None
) -> Engine:
    """The engine of a run, from a resolved DeepSpeed JSON."""
    parts = {"train": config.train, "kernels": config.kernels, "optim": config.optim, "objectives": config.objectives}
    return parallelize(model, resolved, seed=config.run.seed, weights=weights, **parts)


def make_batch(
    size: Size,
    grid: tuple[int, int],
    pairs: int = 0,
    shortest: int = SHORTEST,
    start: int = 0,
    rounding: Rounding = FINE,
) -> Batch:
    """A batch of different pairs whose captions have `shortest` to 30 tokens, with all lengths equally likely.

    Args:
        grid: rows and columns of the model's patches.
        pairs: 0 = the size's own number.
        start: the number of the first pair among all that could be made.
        rounding: the sizes to which it is padded; compiled runs use `COARSE`.
    """
    samples = [_sample(size, grid, place, shortest) for place in range(start, start + (pairs or size.pairs))]
    images_1BCHW = torch.from_numpy(np.stack([np.stack(sample.images) for sample in samples], axis=1))
    return collate_pairs(samples, images_1BCHW, SPECIAL_TOKENS.index("<pad>"), size.config.data.text_length, rounding)


def _sample(size: Size, grid: tuple[int, int], place: int, shortest: int) -> Pair:
    config = size.config
    objectives, side = config.objectives, config.model.image_size
    drawn = generator(0, Purpose.VIEW, 0, 0, place)
    text_L = drawn.integers(len(SPECIAL_TOKENS), size.vocabulary, drawn.integers(shortest, config.data.text_length + 1))
    text_L[0], text_L[-1] = SPECIAL_TOKENS.index("<s>"), SPECIAL_TOKENS.index("</s>")
    masked_L, target_L = token_mask(
        generator(0, Purpose.TOKENS, 0, 0, place),
        text_L,
        text_L < len(SPECIAL_TOKENS),
        objectives,
        mask_id=SPECIAL_TOKENS.index("<mask>"),
        random_ids=np.arange(len(SPECIAL_TOKENS), size.vocabulary),
    )
    image_CHW = drawn.integers(0, 256, (3, side, side), dtype=np.uint8)
    hidden_N = patch_mask(generator(0, Purpose.PATCHES, 0, 0, place), grid, objectives)
    return Pair(
        images=image_CHW[None],
        flip=False,
        position=place,
        row=place,
        patch_mask_N=hidden_N,
        text_L=text_L,
        masked_text_L=masked_L,
        target_L=target_L,
    )
