"""A run's recipe, chosen for the size of the corpus and the machine, with a reason for each choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mvlm.api.corpus import ShardedCorpus
from mvlm.config.schema import OBJECTIVES_OF, Data, Model, Optim
from mvlm.config.shipped import shipped
from mvlm.config.toml import as_toml, read_tables
from mvlm.model.dictionary import NAME
from mvlm.pretrained.packaged import INSTALL, SmallEncoders
from mvlm.runtime.wording import counted


@dataclass(frozen=True)
class RecipeChoice:
    """A key of the run TOML, `table.key`, its value, and the reason for it."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key} = {as_toml(self.value)}  ({self.reason})"


@dataclass(frozen=True)
class Recipe:
    """A base recipe, and the choices that change it.

    Attributes:
        base: where it comes from, for people to read.
        tables: its tables, as in a run TOML.
        reason: why this base.
    """

    base: str
    tables: Mapping[str, Mapping[str, Any]]
    reason: str
    choices: tuple[RecipeChoice, ...]

    def text(self, heading: str) -> str:
        """The recipe with its choices, as a run TOML."""
        tables: dict[str, dict[str, Any]] = {name: dict(table) for name, table in self.tables.items()}
        reasons = {choice.key: choice.reason for choice in self.choices}
        for choice in self.choices:
            table, key = choice.key.split(".")
            tables.setdefault(table, {})[key] = choice.value
        return f"# {heading}\n# {self.base}: {self.reason}.\n" + "".join(_tables(tables, reasons))


def _tables(tables: Mapping[str, Any], reasons: Mapping[str, str]) -> list[str]:
    lines = []
    for name, table in tables.items():
        lines.append(f"\n[{name}]\n")
        for key, value in table.items():
            reason = reasons.get(f"{name}.{key}")
            lines.append(f"{key} = {as_toml(value)}{f'  # {reason}' if reason else ''}\n")
    return lines


EPOCHS, FEWEST_UPDATES, FEWEST_WITH_ENCODERS = 15, 600, 150
"""Passes over the pictures, and the fewest updates from random weights and from pretrained encoders."""

SMALL = 200_000
"""The most pictures for which a CPU begins with small encoders or a dictionary: with 194,884, the most measured, a
dictionary reached more in 62 minutes than a transformer in 1.6 hours (docs/icons.md)."""

EVALUATIONS = 5
"""Evaluations in a run, including the one at its end."""

LINES = 100
"""Progress lines in a run, each with the losses and the time left."""

HELD_OUT_LIMIT = 1000
"""Images in an evaluation during training."""


def is_small(images: int, gpus: int) -> bool:
    """Whether a CPU will train on a small corpus."""
    return images <= SMALL and not gpus


def choose(
    images: int,
    train: Sequence[str],
    held_out: Sequence[str],
    run: Path,
    gpus: int,
    begins_with: SmallEncoders | Path | None = None,
) -> Recipe:
    """A recipe for a number of images and of GPUs; no GPUs means the CPU.

    Args:
        begins_with: what training on a small corpus on a CPU begins with: installed small encoders, or the file of a
            dictionary; with GPUs, larger encoders are used.
    """
    base, reason = ("small.toml", "a GPU trains it in hours") if gpus else ("tiny.toml", "a CPU trains it in minutes")
    start: list[RecipeChoice] = []
    largest, fewest = 512 if gpus else 64, FEWEST_UPDATES
    if is_small(images, gpus) and isinstance(begins_with, SmallEncoders):
        reason = "its encoders are small pretrained ones, trained on far more pictures and sentences"
        start, largest, fewest = _with_encoders(begins_with), 128, FEWEST_WITH_ENCODERS
    elif is_small(images, gpus) and isinstance(begins_with, Path):
        reason += f"; pretrained encoders are far better: {INSTALL}"
        start = _with_dictionary(begins_with)
    batch = _global_batch(images, largest)
    epochs, why = _epochs(images, batch, fewest)
    steps = math.ceil(epochs * images / batch)
    choices = [
        RecipeChoice("run.dir", str(run), "where everything goes"),
        RecipeChoice("data.train", list(train), counted(images, "image")),
        RecipeChoice("data.epoch", "images", "every picture equally often, however many captions it has"),
        RecipeChoice("train.global_batch", batch, "the pairs that are contrasted with each other"),
        RecipeChoice("train.epochs", epochs, why),
        RecipeChoice("checkpoint.every", max(1, steps // (2 * EVALUATIONS)), f"{2 * EVALUATIONS} in the run"),
        RecipeChoice("log.every", max(1, steps // LINES), f"about {LINES} lines"),
        *start,
    ]
    choices += _evaluations(held_out, steps, "images", "eval/mean_recall")
    return Recipe(base, read_tables(shipped("configs") / base, "recipe"), reason, tuple(choices))


def _global_batch(rows: int, largest: int) -> int:
    """The largest power of two that is at most `largest` and at most the rows, but at least 2."""
    return min(largest, 1 << max(2, rows).bit_length() - 1)


def _evaluations(held_out: Sequence[str], steps: int, counted: str, metric: str) -> list[RecipeChoice]:
    """Settings of evaluations on held-out shards, by which the best checkpoint is kept; none without such shards."""
    if not held_out:
        return []
    return [
        RecipeChoice("data.eval", list(held_out), "held out"),
        RecipeChoice("eval.every", max(1, steps // EVALUATIONS), f"{EVALUATIONS} in the run"),
        RecipeChoice("eval.limit", HELD_OUT_LIMIT, f"{counted}, so that an evaluation is short"),
        RecipeChoice("eval.select", metric, "the best checkpoint by this is kept, besides the newest"),
    ]


FROZEN = ["vision.vit.trunk", "vision.vit.patch_embed"]
"""The convolutional network, and the learned mask patch before it, whose gradient would pass through all of it."""


def _with_encoders(encoders: SmallEncoders) -> list[RecipeChoice]:
    """The settings that `benchmarks/small` trained them with."""
    return [
        RecipeChoice("model.vision", "tf_efficientnet_lite0", "trained on ImageNet; small enough for a CPU"),
        RecipeChoice("model.vision_weights", str(encoders.images), "from an installed package"),
        RecipeChoice("model.vision_args", {"embed_dim": 256}, "the width that its features are projected to"),
        RecipeChoice("model.image_size", 96, "a multiple of 32"),
        RecipeChoice("model.text", str(encoders.texts), "MiniLM, trained on sentences"),
        RecipeChoice("model.text_weights", "pretrained", "from the same package"),
        RecipeChoice("model.text_args", {}, "as it was trained"),
        RecipeChoice("model.text_pool", "mean", "the same"),
        RecipeChoice("model.cross_init_std", 0.05, "about 1 / sqrt(width)"),
        RecipeChoice("data.tokenizer", "", "MiniLM's own"),
        RecipeChoice("data.randaugment", [1, 5], "a little augmentation"),
        RecipeChoice("objectives.image_mask_block", 1, "a feature of the image covers 32 pixels"),
        *_contrast_alone(),
        RecipeChoice("optim.lr", 2e-3, "for the new modules"),
        RecipeChoice("optim.encoder_lr", 1e-4, "for MiniLM"),
        RecipeChoice(
            "train.freeze", FROZEN, "a small set of pictures teaches it nothing new, and its backward pass is saved"
        ),
    ]


DICTIONARY_SIZE = 64
"""Side, in pixels, of the pictures that a dictionary is made from."""


def _with_dictionary(dictionary: Path) -> list[RecipeChoice]:
    """The arm `dictionary` of `benchmarks/small`, which retrieved best for its CPU time without pretraining."""
    text: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 0, "num_attention_heads": 4}
    text |= {"intermediate_size": 128, "max_position_embeddings": 64, "initializer_range": 0.16}
    return [
        RecipeChoice("model.vision", NAME, "the patches that these pictures consist of, none of them trained"),
        RecipeChoice("model.vision_weights", str(dictionary), "made from the pictures, as by `mvlm dictionary`"),
        RecipeChoice(
            "model.vision_args",
            {"embed_dim": 128, "dropout": 0.5},
            "without dropout, a small set of pictures is memorised",
        ),
        RecipeChoice("model.image_size", DICTIONARY_SIZE, "a multiple of 16"),
        RecipeChoice("model.text_args", text, "the words without their order, which so few captions cannot teach"),
        RecipeChoice("model.text_pool", "mean", "of the words"),
        RecipeChoice("model.temperature_min", 0.07, "its initial value: it would fall as pictures are memorised"),
        RecipeChoice("objectives.image_mask_block", 1, "a feature of the image covers 16 pixels"),
        *_contrast_alone(),
        RecipeChoice("data.vocabulary", 4096, "so few captions have no more words than that"),
        RecipeChoice("data.crop_scale", [1.0, 1.0], "dropout does more than augmentation"),
        RecipeChoice("data.randaugment", [0, 0], "the same"),
        RecipeChoice("optim.lr", 2e-3, "for a narrow model"),
        RecipeChoice("optim.encoder_lr", 2e-3, "the encoders begin with random weights too"),
        RecipeChoice("train.freeze", FROZEN, "made from all pictures, so nothing is left to learn"),
    ]


def _contrast_alone() -> list[RecipeChoice]:
    reason = "contrast alone takes a fraction of the time; 1 trains this too"
    return [RecipeChoice(f"objectives.{name}", 0.0, reason) for name in ("image", "text", "itm")]


TUNING_EPOCHS = 8
"""ALBEF's for VQA (Li et al. 2021, appendix A)."""

KEPT = ("text_length", "crop_scale", "flip", "randaugment", "randaugment_kind")
"""Keys of [data] that a run takes over from the one it starts from."""


def choose_tuning(
    start: tuple[Data, Model, Optim], checkpoint: Path, task: str, corpus: ShardedCorpus, run: Path, gpus: int
) -> Recipe:
    """A recipe that fine-tunes a checkpoint for a task.

    Args:
        start: the configuration of the checkpoint's run.
    """
    data, model, optim = start
    tables = {"data": {key: getattr(data, key) for key in KEPT}, "model": asdict(model)}
    batch = _global_batch(corpus.images, 256 if gpus else 64)
    least = math.ceil(FEWEST_UPDATES * batch / corpus.images)
    epochs, why = max(least, TUNING_EPOCHS), f"at least {FEWEST_UPDATES:,} updates and {TUNING_EPOCHS} passes"
    steps = math.ceil(epochs * corpus.images / batch)
    choices = [
        RecipeChoice("run.dir", str(run), "where everything goes"),
        RecipeChoice("task.name", task, "what it is fine-tuned for"),
        RecipeChoice("task.answer_minimum", 9 if corpus.images > RARE_ANSWERS else 1, "questions that share an answer"),
        RecipeChoice("checkpoint.init", str(checkpoint), "the weights to start from"),
        RecipeChoice("data.tokenizer", "", "the tokenizer of these weights"),
        RecipeChoice("data.train", list(corpus.train), counted(corpus.images, "row")),
        RecipeChoice("train.global_batch", batch, "ALBEF's on GPUs"),
        RecipeChoice("train.epochs", epochs, why),
        RecipeChoice("optim.warmup_steps", steps // 20, "a twentieth of the updates"),
        RecipeChoice("checkpoint.every", max(1, steps // (2 * EVALUATIONS)), f"{2 * EVALUATIONS} in the run"),
        *_tuning_rates(model, optim),
        *(
            RecipeChoice(f"objectives.{name}", 0.0, f"{task} does not use it")
            for name in OBJECTIVES_OF["pretrain"]
            if name not in OBJECTIVES_OF.get(task, OBJECTIVES_OF["pretrain"])
        ),
    ]
    choices += _evaluations(corpus.eval, steps, "rows", "eval/accuracy")
    return Recipe(str(checkpoint), tables, "the checkpoint that is fine-tuned", tuple(choices))


RARE_ANSWERS = 10_000
"""In a corpus of up to so many questions, no answer is too rare to be a class."""


def _tuning_rates(model: Model, optim: Optim) -> list[RecipeChoice]:
    """ALBEF's 2e-5 if the encoders were pretrained by others, otherwise the run's own learning rates."""
    if model.vision_weights != "random" and model.vision != NAME:
        return [RecipeChoice(f"optim.{key}", 2e-5, "ALBEF's in fine-tuning") for key in ("lr", "encoder_lr")]
    rates = {"lr": optim.lr, "encoder_lr": optim.encoder_lr}
    return [RecipeChoice(f"optim.{key}", rate, "as in pretraining") for key, rate in rates.items()]


def _epochs(images: int, batch: int, fewest: int) -> tuple[int, str]:
    """Enough epochs to learn something from few pictures, and few enough to finish with many; and the reason."""
    least = math.ceil(fewest * batch / images)
    if least > EPOCHS:
        return least, f"the fewest that make {fewest:,} updates of {batch} pairs"
    return EPOCHS, f"{math.ceil(EPOCHS * images / batch):,} updates of {batch} pairs"
