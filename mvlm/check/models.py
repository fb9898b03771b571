"""The model that a run would train, built without its weights: whether it can be, and whether checkpoints fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from transformers import PreTrainedTokenizerBase

from mvlm.check.report import Report
from mvlm.config import Config, Model
from mvlm.data.index import Mixture
from mvlm.data.labelled import LabelledDataset, class_names
from mvlm.data.pairs import PairDataset
from mvlm.data.rows import Rows
from mvlm.data.tokenizer import load_tokenizer, train_tokenizer
from mvlm.errors import UserError
from mvlm.model.encoders import Encoders
from mvlm.model.foreign import HUB, read_tensors
from mvlm.model.text import check_has_weights
from mvlm.model.weights import WEIGHTS, open_tensors
from mvlm.train.checkpoint import Start
from mvlm.train.folder import TOKENIZER, TRAINED, build_model, find_answers, tokenizer_source
from mvlm.train.optim import count_parameters, freeze
from mvlm.train.wholeness import compare_shapes

FILES = ("model.safetensors", "pytorch_model.bin")
"""Of which a repository of the hub has one."""


def check_model(report: Report, config: Config, start: Start, mixture: Mixture | None, deep: bool) -> int:
    """Build it on the meta device, which takes no memory, and compare the checkpoint that it starts from.

    Returns:
        Its parameters; 0 where it cannot be built.
    """
    parameters = 0
    if start.checkpoint is None:
        _check_weights(report, config.model)
    with report.judged("model"):
        tokenizer = _tokenizer(report, config, start)
        model, taken = _built(config, tokenizer, start, _classes(config, start, mixture, deep))
        if mixture:
            dataset = _dataset(config, mixture, tokenizer, model)
            trained = tokenizer_source(config, Path(config.run.dir), start) == TRAINED  # then nobody knows lengths yet
            if not trained and (cut := dataset.told_cut()):
                report.unknown("data", cut)
        freeze(model, config.train.freeze)
        parameters = count_parameters(model)
        report.right("model", f"The model can be built: {parameters / 1e6:.3g} million parameters.")
        if taken:
            report.right("checkpoint", taken)
        elif start.checkpoint:
            _compare(report, start.checkpoint, model)
    return parameters


def _dataset(config: Config, mixture: Mixture, tokenizer: PreTrainedTokenizerBase, model: Encoders) -> Rows[Any]:
    """Raises UserError where the mask blocks do not fit the image."""
    if config.task.is_labelled:
        return LabelledDataset(mixture, config.task.name, tokenizer, config)
    return PairDataset(mixture, tokenizer, config, model.grid)


def _compare(report: Report, checkpoint: Path, model: Encoders) -> None:
    with report.judged("checkpoint"), open_tensors(checkpoint, WEIGHTS) as files:
        compare_shapes(checkpoint, files, dict(model.named_parameters()))
        report.right("checkpoint", f"{checkpoint.name} holds this model's parameters, in name and shape.")


def _built(config: Config, tokenizer: PreTrainedTokenizerBase, start: Start, classes: int) -> tuple[Encoders, str]:
    """The model of shapes alone, and what was taken of `checkpoint.init`.

    Raises:
        UserError: it cannot be built, or the checkpoint's weights do not fit.
    """
    try:
        with torch.device("meta"):
            model, taken = build_model(config, tokenizer, start, classes, load_weights=False)
    except (OSError, ValueError) as error:  # of what describes a run's encoder and tokenizer
        if start.checkpoint is None:
            raise
        run = start.checkpoint.parent.parent
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"The model of {run} cannot be built ({reason}): copy its folders tokenizer and text_encoder again."
        ) from None
    return model, " ".join(str(taken).splitlines()) if start.checkpoint and taken else ""


def _tokenizer(report: Report, config: Config, start: Start) -> PreTrainedTokenizerBase:
    """The run's; one of as many tokens stands for one that is trained when the run begins."""
    source = tokenizer_source(config, Path(config.run.dir), start)
    if source == TRAINED:
        tokenizer: PreTrainedTokenizerBase = train_tokenizer((), config.data.vocabulary)
        tokenizer.add_tokens([f"<{number}>" for number in range(len(tokenizer), config.data.vocabulary)])
        report.right("tokenizer", f"One of up to {config.data.vocabulary:,} tokens will be trained on data.train.")
        return tokenizer
    tokenizer = load_tokenizer(source)
    report.right("tokenizer", f"{source} can be loaded: {len(tokenizer):,} tokens.")
    return tokenizer


def _classes(config: Config, start: Start, mixture: Mixture | None, deep: bool) -> int:
    """How many the run's task chooses among; of answers that are still to be counted, 1 stands for all."""
    if config.task.name != "vqa":
        return len(class_names(config.task.name, Path()))
    if start.checkpoint and start.resumes:
        return len(class_names("vqa", start.checkpoint.parent.parent / TOKENIZER))
    return len(find_answers(config, mixture, start)) if deep and mixture else 1


def _check_weights(report: Report, config: Model) -> None:
    """Whether pretrained weights are here, or where they will come from."""
    with report.judged("weights"):
        if config.vision_weights == "pretrained":
            _check_on_hub(report, "model.vision", config.vision, _timm_repository(config.vision))
        elif config.vision_weights != "random":
            _check_place(report, "model.vision_weights", config.vision_weights)
    with report.judged("weights"):
        if config.text_weights == "pretrained":
            check_has_weights(config)
            _check_on_hub(report, "model.text", config.text, config.text)
        elif config.text_weights != "random":
            _check_place(report, "model.text_weights", config.text_weights)


def _check_place(report: Report, key: str, place: str) -> None:
    """Raises UserError where it can be known already that no weights are to be had there."""
    if place.startswith(HUB):
        report.unknown("weights", f"{key} = {place!r} is fetched from the hub when the run begins.")
    else:
        read_tensors(place)
        report.right("weights", f"{key} = {place!r} can be read.")


def _timm_repository(name: str) -> str:
    known = None if Path(name).is_dir() else timm.models.get_pretrained_cfg(name)
    return (known.hf_hub_id or "") if known else name


def _check_on_hub(report: Report, key: str, name: str, repository: str) -> None:
    """
    Raises:
        UserError: they are not here, and the environment forbids to fetch them.
    """
    if Path(repository).is_dir():
        if not any((Path(repository) / file).is_file() for file in FILES):
            raise UserError(f"{key} = {name!r} holds neither {' nor '.join(FILES)}: give a folder with weights.")
        report.right("weights", f"{key} = {name!r} is a folder with weights.")
    elif any(isinstance(try_to_load_from_cache(repository, file), str) for file in FILES):
        report.right("weights", f"The weights of {key} = {name!r} are in this machine's cache of the hub.")
    elif constants.HF_HUB_OFFLINE:
        raise UserError(
            f"The weights of {key} = {name!r} are not in this machine's cache, and HF_HUB_OFFLINE forbids to fetch "
            "them: fetch them where there is a network, or give a local folder."
        )
    else:
        report.unknown("weights", f"The weights of {key} = {name!r} are fetched from the hub when the run begins.")
