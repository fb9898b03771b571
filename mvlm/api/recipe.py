"""A run's recipe chosen by the size of the corpus and the machine, with a reason for each choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mvlm.api.corpus import ShardedCorpus
from mvlm.config.schema import OBJECTIVES_OF, Data, Model, Optim
from mvlm.config.toml import as_toml, read_tables
from mvlm.model.dictionary import NAME
from mvlm.pretrained.packaged import INSTALL, SmallEncoders

RECIPES = Path(__file__).parent.parent / "configs"


@dataclass(frozen=True)
class RecipeChoice:
    """A key of the run TOML, `table.key`, its value, and why."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key} = {as_toml(self.value)}  ({self.reason})"


@dataclass(frozen=True)
class Recipe:
    """A recipe, and what is chosen differently.

    Attributes:
        base: where it comes from, for people.
        tables: of it, as a run TOML has them.
    """

    base: str
    tables: Mapping[str, Mapping[str, Any]]
    reason: str
    choices: tuple[RecipeChoice, ...]

    def text(self, heading: str) -> str:
        """The whole as a run TOML."""
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
"""Passes over the pictures, and updates at least: from random weights, and with encoders trained by others."""

SMALL = 200_000
"""Pictures up to which a CPU begins with small encoders or a dictionary: of 194,884, the most that were measured, a
dictionary taught more in 62 minutes than a transformer in 1.6 hours (docs/icons.md)."""

EVALUATIONS = 5
"""In a run, the last among them."""

LINES = 100
"""Of progress in a run, each with the losses and the time that is left."""

HELD_OUT_LIMIT = 1000
"""Images of an evaluation while training."""


def is_small(images: int, gpus: int) -> bool:
    """Whether a corpus is small, and a CPU is to train on it."""
    return images <= SMALL and not gpus


def choose(
    images: int,
    train: Sequence[str],
    held_out: Sequence[str],
    run: Path,
    gpus: int,
    begins_with: SmallEncoders | Path | None = None,
) -> Recipe:
    """A recipe for so many images on so many GPUs, none meaning the CPU.

    Args:
        begins_with: what a small corpus on a CPU begins with: small encoders that are installed, or the file of a
            dictionary; GPUs have larger encoders.
    """
    base, reason = ("small.toml", "a GPU trains it in hours") if gpus else ("tiny.toml", "a CPU trains it in minutes")
    start: list[RecipeChoice] = []
    largest, fewest = 512 if gpus else 64, FEWEST_UPDATES
    if is_small(images, gpus) and isinstance(begins_with, SmallEncoders):
        reason = "its encoders are small ones that others have trained, on far more pictures and sentences"
        start, largest, fewest = _with_encoders(begins_with), 128, FEWEST_WITH_ENCODERS
    elif is_small(images, gpus) and isinstance(begins_with, Path):
        reason += f"; far better with encoders that others have trained: {INSTALL}"
        start = _with_dictionary(begins_with)
    batch = min(largest, 1 << max(1, math.floor(math.log2(max(2, images)))))
    epochs, why = _epochs(images, batch, fewest)
    steps = math.ceil(epochs * images / batch)
    choices = [
        RecipeChoice("run.dir", str(run), "where everything goes"),
        RecipeChoice("data.train", list(train), f"{images:,} images"),
        RecipeChoice("data.epoch", "images", "every picture as often as any other, whatever its number of captions"),
        RecipeChoice("train.global_batch", batch, "as many pairs as are contrasted with each other"),
        RecipeChoice("train.epochs", epochs, why),
        RecipeChoice("checkpoint.every", max(1, steps // (2 * EVALUATIONS)), f"{2 * EVALUATIONS} in the run"),
        RecipeChoice("log.every", max(1, steps // LINES), f"{LINES} lines or so"),
        *start,
    ]
    choices += _evaluations(held_out, steps, "images", "eval/mean_recall")
    return Recipe(base, read_tables(RECIPES / base, "recipe"), reason, tuple(choices))


def _evaluations(held_out: Sequence[str], steps: int, counted: str, metric: str) -> list[RecipeChoice]:
    """On held-out shards, by whose metric the best checkpoint is kept; none without them."""
    if not held_out:
        return []
    return [
        RecipeChoice("data.eval", list(held_out), "held out"),
        RecipeChoice("eval.every", max(1, steps // EVALUATIONS), f"{EVALUATIONS} in the run"),
        RecipeChoice("eval.limit", HELD_OUT_LIMIT, f"{counted}, so that an evaluation is short"),
        RecipeChoice("eval.select", metric, "the best checkpoint by it is kept, besides the newest"),
    ]


FROZEN = ["vision.vit.trunk", "vision.vit.patch_embed"]
"""The convolutional network, and the learned patch before it, whose gradient would go through all of it."""


def _with_encoders(encoders: SmallEncoders) -> list[RecipeChoice]:
    """What `benchmarks/small` trained them with."""
    return [
        RecipeChoice("model.vision", "tf_efficientnet_lite0", "trained on ImageNet; small enough for a CPU"),
        RecipeChoice("model.vision_weights", str(encoders.images), "of an installed package"),
        RecipeChoice("model.vision_args", {"embed_dim": 256}, "what its features are projected to"),
        RecipeChoice("model.image_size", 96, "a multiple of 32"),
        RecipeChoice("model.text", str(encoders.texts), "MiniLM, trained on sentences"),
        RecipeChoice("model.text_weights", "pretrained", "of the same package"),
        RecipeChoice("model.text_args", {}, "as it was trained"),
        RecipeChoice("model.text_pool", "mean", "the same"),
        RecipeChoice("model.cross_init_std", 0.05, "of 1 / sqrt(width)"),
        RecipeChoice("data.tokenizer", "", "MiniLM's own"),
        RecipeChoice("data.randaugment", [1, 5], "a little augmentation"),
        RecipeChoice("objectives.image_mask_block", 1, "a feature of the image is 32 pixels wide"),
        *_contrast_alone(),
        RecipeChoice("optim.lr", 2e-3, "of what is new"),
        RecipeChoice("optim.encoder_lr", 1e-4, "of MiniLM"),
        RecipeChoice("train.freeze", FROZEN, "few pictures teach it nothing new, and its backward pass is saved"),
    ]


DICTIONARY_SIZE = 64
"""Pixels of the side of a picture that a dictionary is made of."""


def _with_dictionary(dictionary: Path) -> list[RecipeChoice]:
    """What found most in the same CPU time with nothing pretrained in `benchmarks/small`, as its arm `dictionary`."""
    text: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 0, "num_attention_heads": 4}
    text |= {"intermediate_size": 128, "max_position_embeddings": 64, "initializer_range": 0.16}
    return [
        RecipeChoice("model.vision", NAME, "the patches that these pictures are made of; nothing of it is trained"),
        RecipeChoice("model.vision_weights", str(dictionary), "made of them, as `mvlm dictionary` does"),
        RecipeChoice(
            "model.vision_args", {"embed_dim": 128, "dropout": 0.5}, "few pictures are learned by heart without dropout"
        ),
        RecipeChoice("model.image_size", DICTIONARY_SIZE, "a multiple of 16"),
        RecipeChoice("model.text_args", text, "the words alone and not their order: no layer would learn it of so few"),
        RecipeChoice("model.text_pool", "mean", "of the words"),
        RecipeChoice("model.temperature_min", 0.07, "where it begins: it would fall as pictures are learned by heart"),
        RecipeChoice("objectives.image_mask_block", 1, "a feature of the image is 16 pixels wide"),
        *_contrast_alone(),
        RecipeChoice("data.vocabulary", 4096, "few captions have no more words"),
        RecipeChoice("data.crop_scale", [1.0, 1.0], "dropout does more than augmentation"),
        RecipeChoice("data.randaugment", [0, 0], "the same"),
        RecipeChoice("optim.lr", 2e-3, "of a narrow model"),
        RecipeChoice("optim.encoder_lr", 2e-3, "of random weights, too"),
        RecipeChoice("train.freeze", FROZEN, "what has been made of all pictures need not be learned of them again"),
    ]


def _contrast_alone() -> list[RecipeChoice]:
    reason = "contrast alone costs a fraction of the time; 1 trains this too"
    return [RecipeChoice(f"objectives.{name}", 0.0, reason) for name in ("image", "text", "itm")]


TUNING_EPOCHS = 8
"""ALBEF's for VQA (Li et al. 2021, appendix A)."""

KEPT = ("text_length", "crop_scale", "flip", "randaugment", "randaugment_kind")
"""Keys of [data] that a run has of the one that it starts from."""


def choose_tuning(
    start: tuple[Data, Model, Optim], checkpoint: Path, task: str, corpus: ShardedCorpus, run: Path, gpus: int
) -> Recipe:
    """A recipe that fine-tunes a checkpoint for a task.

    Args:
        start: the configuration of the run that the checkpoint is of.
    """
    data, model, optim = start
    tables = {"data": {key: getattr(data, key) for key in KEPT}, "model": asdict(model)}
    batch = min(256 if gpus else 64, 1 << max(1, math.floor(math.log2(max(2, corpus.images)))))
    least = math.ceil(FEWEST_UPDATES * batch / corpus.images)
    epochs, why = max(least, TUNING_EPOCHS), f"{FEWEST_UPDATES:,} updates at least, and {TUNING_EPOCHS} passes"
    steps = math.ceil(epochs * corpus.images / batch)
    choices = [
        RecipeChoice("run.dir", str(run), "where everything goes"),
        RecipeChoice("task.name", task, "what it is fine-tuned for"),
        RecipeChoice("task.answer_minimum", 9 if corpus.images > RARE_ANSWERS else 1, "questions that share an answer"),
        RecipeChoice("checkpoint.init", str(checkpoint), "the weights to begin with"),
        RecipeChoice("data.tokenizer", "", "that of these weights"),
        RecipeChoice("data.train", list(corpus.train), f"{corpus.images:,} rows"),
        RecipeChoice("train.global_batch", batch, "ALBEF's on GPUs"),
        RecipeChoice("train.epochs", epochs, why),
        RecipeChoice("optim.warmup_steps", steps // 20, "a twentieth of them"),
        RecipeChoice("checkpoint.every", max(1, steps // (2 * EVALUATIONS)), f"{2 * EVALUATIONS} in the run"),
        *_tuning_rates(model, optim),
        *(
            RecipeChoice(f"objectives.{name}", 0.0, f"{task} does without")
            for name in OBJECTIVES_OF["pretrain"]
            if name not in OBJECTIVES_OF.get(task, OBJECTIVES_OF["pretrain"])
        ),
    ]
    choices += _evaluations(corpus.eval, steps, "rows", "eval/accuracy")
    return Recipe(str(checkpoint), tables, "the checkpoint that is fine-tuned", tuple(choices))


RARE_ANSWERS = 10_000
"""Questions of a corpus up to which no answer is too rare to be a class."""


def _tuning_rates(model: Model, optim: Optim) -> list[RecipeChoice]:
    """ALBEF's 2e-5 where encoders were pretrained by others, else those that the run has had from the start."""
    if model.vision_weights != "random":
        return [RecipeChoice(f"optim.{key}", 2e-5, "ALBEF's in fine-tuning") for key in ("lr", "encoder_lr")]
    rates = {"lr": optim.lr, "encoder_lr": optim.encoder_lr}
    return [RecipeChoice(f"optim.{key}", rate, "as in pretraining") for key, rate in rates.items()]


def _epochs(images: int, batch: int, fewest: int) -> tuple[int, str]:
    """Enough to learn something of few pictures, and few enough of many to end."""
    least = math.ceil(fewest * batch / images)
    if least > EPOCHS:
        return least, f"the fewest that make {fewest:,} updates of {batch} pairs"
    return EPOCHS, f"{math.ceil(EPOCHS * images / batch):,} updates of {batch} pairs"
