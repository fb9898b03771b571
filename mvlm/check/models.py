"""Checks that a run's model can be built, without its weights, and that checkpoints fit it."""

from __future__ import annotations

from pathlib import Path

import timm
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedTokenizerBase

from mvlm.check.report import Report
from mvlm.checkpoint.integrity import compare_shapes
from mvlm.checkpoint.layout import WEIGHTS
from mvlm.checkpoint.tensors import open_tensors
from mvlm.config.schema import Config, Model
from mvlm.data.loading.truncation import truncation_warning
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from mvlm.model.encoders import Encoders
from mvlm.pretrained.encoders import check_has_weights
from mvlm.pretrained.positions import is_image_position
from mvlm.pretrained.read import FILES, HUB, read_tensors
from mvlm.runtime import hub
from mvlm.training.build import (
    TRAINED,
    build_dataset,
    build_empty,
    expected_classes,
    expected_tokenizer,
    tokenizer_source,
)
from mvlm.training.checkpoint.resume import Start
from mvlm.training.optim import count_parameters
from mvlm.training.parallelize import freeze
from mvlm.training.run_folder import find_answers
from mvlm.training.tensor_parallel import split_layers


def check_model(report: Report, config: Config, start: Start, mixture: Mixture | None, deep: bool, split: int) -> int:
    """Build the model on the meta device, which takes no memory, and compare it with the checkpoint it starts from.

    Args:
        split: ranks per replica, among which its layers are split.

    Returns:
        Its number of parameters; 0 if it cannot be built.
    """
    parameters = 0
    if start.checkpoint is None:
        _check_weights(report, config.model)
    with report.judged("model"):
        tokenizer = _tokenizer(report, config, start)
        classes = _classes(config, start, mixture, deep)
        model, taken = build_empty(config.blueprint, config.data, tokenizer, start, classes)
        if mixture:
            dataset = build_dataset(config.blueprint, config.data, mixture, tokenizer, model)
            # A tokenizer that is yet to be trained cannot tell how long a text will be.
            trained = tokenizer_source(config.data, config.model.text, start) == TRAINED
            if not trained and (cut := truncation_warning(dataset)):
                report.unknown("data", cut)
        freeze(model, config.train.freeze)
        parameters = count_parameters(model)
        report.right("model", f"The model can be built: {parameters / 1e6:.3g} million parameters.")
        if start.checkpoint and taken:
            report.right("checkpoint", " ".join(str(taken).splitlines()))
        elif start.checkpoint:
            _compare(report, start.checkpoint, model)
        if split > 1:
            split_layers(model, split, 0)
    return parameters


def _compare(report: Report, checkpoint: Path, model: Encoders) -> None:
    with report.judged("checkpoint"), open_tensors(checkpoint, WEIGHTS) as files:
        compare_shapes(checkpoint, files, dict(model.named_parameters()), is_image_position)
        sizes = ((name, files[name].shape, tuple(parameter.shape)) for name, parameter in model.named_parameters())
        if fitted := [name for name, there, here in sizes if there != here]:  # a stage with another image size
            report.right("checkpoint", f"{checkpoint.name} holds this model's parameters, but {fitted[0]} is fitted.")
        else:
            report.right("checkpoint", f"{checkpoint.name} holds this model's parameters, in name and shape.")


def _tokenizer(report: Report, config: Config, start: Start) -> PreTrainedTokenizerBase:
    tokenizer = expected_tokenizer(config.data, config.model.text, start)
    source = tokenizer_source(config.data, config.model.text, start)
    if source == TRAINED:
        report.right("tokenizer", f"One of up to {config.data.vocabulary:,} tokens will be trained on data.train.")
    else:
        report.right("tokenizer", f"{source} can be loaded: {len(tokenizer):,} tokens.")
    return tokenizer


def _classes(config: Config, start: Start, mixture: Mixture | None, deep: bool) -> int:
    """How many classes the run's task chooses among; answers not counted yet are counted with `deep` alone."""
    if config.task.name == "vqa" and deep and mixture and not start.resumes:
        return len(find_answers(config.task, mixture))
    return expected_classes(config.task, start)


def _check_weights(report: Report, config: Model) -> None:
    """Check that pretrained weights are here, or report where they will come from."""
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
    """Raises `UserError` if it is already certain that there are no weights there."""
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
        UserError: the weights are not here and cannot be fetched.
    """
    if Path(repository).is_dir():
        if not any((Path(repository) / file).is_file() for file in FILES):
            raise UserError(f"{key} = {name!r} holds neither {' nor '.join(FILES)}: give a folder with weights.")
        report.right("weights", f"{key} = {name!r} is a folder with weights.")
        return
    try:
        cached = [try_to_load_from_cache(repository, file) for file in FILES]
    except HFValidationError:
        raise UserError(f"{key} = {name!r} is neither a folder here nor a name on the hub: give one that is.") from None
    if any(isinstance(path, str) for path in cached):
        report.right("weights", f"The weights of {key} = {name!r} are in this machine's cache of the hub.")
        return
    hub.ask()
    if missing := hub.why_offline():
        raise UserError(
            f"The weights of {key} = {name!r} are not in this machine's cache, and {missing}: fetch them where there "
            "is a network, or give a local folder."
        )
    report.unknown("weights", f"The weights of {key} = {name!r} are fetched from the hub when the run begins.")
