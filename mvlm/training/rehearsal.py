"""A run's model built of shapes alone, before anything is fetched, trained or written: what cannot be is told first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mvlm.checkpoint.description import TOKENIZER, described_in
from mvlm.config.schema import Config
from mvlm.data.samples.dataset import Rows
from mvlm.data.samples.labelled import LabelledDataset, class_names
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.samples.tokenizer import load_tokenizer, train_tokenizer
from mvlm.data.shards.corpus import Mixture
from mvlm.errors import UserError
from mvlm.model.encoders import Encoders
from mvlm.pretrained.encoders import check_has_weights, text_settings
from mvlm.pretrained.load import with_encoders_of
from mvlm.pretrained.report import InitReport
from mvlm.pretrained.runs import with_described_text
from mvlm.pretrained.text_check import check_text_encoder
from mvlm.runtime import dist
from mvlm.training.blocks import check_stage
from mvlm.training.checkpoint.resume import Start
from mvlm.training.kernels import check_names
from mvlm.training.optim import count_parameters, freeze
from mvlm.training.run_folder import TRAINED, build_starting_model, tokenizer_source
from mvlm.training.zero.config import resolve


def rehearse(
    config: Config,
    content: dict[str, Any],
    names: tuple[str, str],
    start: Start,
    mixture: Mixture,
    steps: tuple[int, int],
) -> None:
    """Raise `UserError` where training would later find that it cannot begin.

    Args:
        content: of the DeepSpeed JSON.
        names: the paths of the JSON and of the run TOML.
        steps: updates in all and of warm-up.
    """
    check_names(config)
    tokenizer = coming_tokenizer(config, start)
    model, _ = build_empty(config, tokenizer, start, coming_classes(config, start))
    coming_dataset(config, mixture, tokenizer, model)
    freeze(model, config.train.freeze)
    ds_config = resolve(content, config, names, dist.world(), *steps, count_parameters(model))
    check_stage(config, ds_config["zero_optimization"]["stage"])


def coming_tokenizer(config: Config, start: Start) -> PreTrainedTokenizerBase:
    """The run's; one of as many tokens stands for one that is trained when the run begins."""
    source = tokenizer_source(config, start)
    if source != TRAINED:
        return load_tokenizer(source)
    tokenizer: PreTrainedTokenizerBase = train_tokenizer((), config.data.vocabulary)
    tokenizer.add_tokens([f"<{number}>" for number in range(len(tokenizer), config.data.vocabulary)])
    return tokenizer


def coming_classes(config: Config, start: Start) -> int:
    """How many the run's task chooses among; of answers that are still to be counted, 1 stands for all."""
    if config.task.name != "vqa":
        return len(class_names(config.task.name, Path()))
    if start.checkpoint and start.resumes:
        return len(class_names("vqa", described_in(start.checkpoint) / TOKENIZER))
    return 1


def build_empty(
    config: Config, tokenizer: PreTrainedTokenizerBase, start: Start, classes: int
) -> tuple[Encoders, InitReport | None]:
    """The model on torch's meta device, which takes no memory, and what was taken of `checkpoint.init`.

    Raises:
        UserError: it cannot be built or cannot read such texts, or the checkpoint's weights do not fit.
    """
    try:
        _check_text(config, tokenizer, start)
        with torch.device("meta"):
            described = described_in(start.checkpoint) if start.checkpoint else Path()
            return build_starting_model(config, tokenizer, start, described, classes, load_weights=False)
    except (OSError, ValueError) as error:  # of what describes a run's encoder and tokenizer
        if start.checkpoint is None:
            raise
        folder = described_in(start.checkpoint)
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"The model of {folder} cannot be built ({reason}): copy its folders tokenizer and text_encoder again."
        ) from None


def coming_dataset(config: Config, mixture: Mixture, tokenizer: PreTrainedTokenizerBase, model: Encoders) -> Rows[Any]:
    """Raises UserError where the mask blocks do not fit the image."""
    if config.task.is_labelled:
        return LabelledDataset(mixture, config.task.name, tokenizer, config)
    return PairDataset(mixture, tokenizer, config, model.grid)


def _check_text(config: Config, tokenizer: PreTrainedTokenizerBase, start: Start) -> None:
    model = config.model
    if start.checkpoint and start.resumes:
        model = with_described_text(model, described_in(start.checkpoint))
    elif start.checkpoint is None and config.checkpoint.init:
        model = with_encoders_of(config, config.checkpoint.init).model
    if start.checkpoint is None:
        check_has_weights(model)
    check_text_encoder(text_settings(model, tokenizer), config.model.text, config.data.text_length)
