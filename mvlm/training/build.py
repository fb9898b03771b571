"""The tokenizer, the model and the data set of a run: in advance, with shapes alone, and for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from mvlm.checkpoint.description import TOKENIZER, described_in
from mvlm.config.schema import Blueprint, Data, Model, Task
from mvlm.data.samples.dataset import ShardDataset
from mvlm.data.samples.labelled import LabelledDataset, class_names
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.samples.tokenizer import load_tokenizer, train_tokenizer
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError, first_line
from mvlm.model.encoders import Encoders
from mvlm.model.initialization import InitialWeights
from mvlm.pretrained.encoders import build_model, build_recorded, check_has_weights, check_text_args, text_settings
from mvlm.pretrained.load import build_with_weights, with_encoders_of
from mvlm.pretrained.report import InitReport
from mvlm.pretrained.runs import offline_model, offline_parts, take_weights, with_described_text
from mvlm.pretrained.text_check import check_text_encoder
from mvlm.training.checkpoint.resume import Start

TRAINED = "auto"  # in place of a tokenizer's folder


def tokenizer_source(data: Data, text: str, start: Start) -> str:
    """Where the run's tokenizer is loaded from, or `TRAINED`.

    With another run's weights it is that run's, whose tokens they know, unless a new run is given one; else it is the
    given one or the text encoder's own.

    Args:
        text: the text encoder's name.
    """
    if start.checkpoint and (start.resumes or data.tokenizer in ("", TRAINED)):
        return str(described_in(start.checkpoint) / TOKENIZER)
    return data.tokenizer or text


def expected_tokenizer(data: Data, text: str, start: Start) -> PreTrainedTokenizerBase:
    """The run's tokenizer; if it is trained when the run begins, one of as many tokens stands in for it.

    Raises:
        UserError: it cannot be loaded, or has other tokens than the run whose weights are taken.
    """
    source = tokenizer_source(data, text, start)
    if source != TRAINED:
        given = load_tokenizer(source)
        own = str(described_in(start.checkpoint) / TOKENIZER) if start.checkpoint else source
        if own != source and load_tokenizer(own).get_vocab() != given.get_vocab():
            raise UserError(
                f"data.tokenizer = {source!r} has different tokens from {own}, which the weights of checkpoint.init "
                "know: leave it out."
            )
        return given
    tokenizer: PreTrainedTokenizerBase = train_tokenizer((), data.vocabulary)
    tokenizer.add_tokens([f"<{number}>" for number in range(len(tokenizer), data.vocabulary)])
    return tokenizer


def expected_classes(task: Task, start: Start) -> int:
    """How many classes the run's task chooses among; 1 stands for answers that are still to be counted."""
    if task.name != "vqa":
        return len(class_names(task.name, Path()))
    if start.checkpoint and start.resumes:
        return len(class_names("vqa", described_in(start.checkpoint) / TOKENIZER))
    return 1


def build_dataset(
    blueprint: Blueprint,
    data: Data,
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    model: Encoders,
    classes: Sequence[str] = (),
) -> ShardDataset[Any]:
    """What a run is trained on; raises `UserError` if the mask blocks do not fit the image.

    Args:
        classes: those that a fine-tuning task chooses among.
    """
    size, seed, task = blueprint.model.image_size, blueprint.seed, blueprint.task
    if task.is_labelled:
        return LabelledDataset(mixture, task.name, tokenizer, data, size, seed, classes)
    return PairDataset(mixture, tokenizer, data, blueprint.objectives, size, seed, model.grid)


class StartingModel(NamedTuple):
    """A model at the start of a run.

    Attributes:
        weights: its initial weights, if it has only shapes so far.
        report: where they come from, if from anywhere.
    """

    model: Encoders
    weights: InitialWeights | None
    report: InitReport | None


def build_starting_model(
    blueprint: Blueprint,
    tokenizer: PreTrainedTokenizerBase,
    start: Start,
    described: Path,
    classes: int,
) -> StartingModel:
    """The model and the weights it starts from.

    Args:
        described: the folder with the tokenizer and the text encoder's description of a resumed run.
        classes: how many a fine-tuning task chooses among; 0 = no such task.

    Raises:
        UserError: the weights asked for are not available, or are another model's.
    """
    if start.checkpoint and start.resumes:
        return StartingModel(*build_recorded(*offline_parts(blueprint, described), classes), None)
    if start.checkpoint:
        model = build_model(blueprint, tokenizer, classes)
        return StartingModel(model, None, take_weights(model, start.checkpoint))
    if start.encoders:
        blueprint = replace(blueprint, model=with_encoders_of(blueprint.model, start.encoders))
    return StartingModel(*build_with_weights(blueprint, tokenizer, classes))


def build_empty(
    blueprint: Blueprint, data: Data, tokenizer: PreTrainedTokenizerBase, start: Start, classes: int
) -> tuple[Encoders, InitReport | None]:
    """The model on torch's meta device, which takes no memory, and what was taken of `checkpoint.init`.

    Raises:
        UserError: it cannot be built or cannot read such texts, or the checkpoint's weights do not fit.
    """
    try:
        _check_text(blueprint.model, data, tokenizer, start)
        with torch.device("meta"):
            if start.checkpoint and start.resumes:
                return offline_model(blueprint, described_in(start.checkpoint), classes), None
            if start.encoders:
                blueprint = replace(blueprint, model=with_encoders_of(blueprint.model, start.encoders))
            model = build_model(blueprint, tokenizer, classes)
            return model, take_weights(model, start.checkpoint) if start.checkpoint else None
    except (OSError, ValueError) as error:  # from the description of a run's encoder and tokenizer
        if start.checkpoint is None:
            raise
        folder = described_in(start.checkpoint)
        reason = first_line(error)
        raise UserError(
            f"The model of {folder} cannot be built ({reason}): copy its folders tokenizer and text_encoder again."
        ) from None


def _check_text(model: Model, data: Data, tokenizer: PreTrainedTokenizerBase, start: Start) -> None:
    name = model.text
    if start.checkpoint and start.resumes:
        model = with_described_text(model, described_in(start.checkpoint))
    elif start.encoders:
        model = with_encoders_of(model, start.encoders)
    if start.checkpoint is None:
        check_has_weights(model)
        if data.tokenizer == TRAINED and model.text_weights != "random":
            raise UserError(
                f"data.tokenizer = {TRAINED!r} trains new tokens, which the weights of the text encoder "
                f"({model.text_weights}) do not know: set it to their tokenizer, '' if that is model.text's own."
            )
    check_text_encoder(text_settings(model, tokenizer), name, data.text_length)
    if start.checkpoint is None:
        check_text_args(model, tokenizer)
