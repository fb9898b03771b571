"""The run folder: what a run leaves for whoever reads, resumes, evaluates or exports it."""

from __future__ import annotations

import dataclasses
import json
import shlex
import socket
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mvlm import __version__, dist
from mvlm.config import Config, dump_config
from mvlm.data.answers import frequent_answers, load_answers, save_answers
from mvlm.data.columns import Row
from mvlm.data.index import Mixture
from mvlm.data.labelled import ANSWERS, SENTENCES
from mvlm.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from mvlm.errors import UserError
from mvlm.model.encoders import Encoders
from mvlm.model.init import Started, started, take_weights, with_encoders_of
from mvlm.model.maskvlm import MaskVLM
from mvlm.model.task import TaskModel
from mvlm.model.weights import offline_model
from mvlm.train.checkpoint import Start, write_durably
from mvlm.train.sites import Site

TOKENIZER, TEXT_ENCODER, STARTED = "tokenizer", "text_encoder", "started_from.json"
TRAINED = "auto"  # in place of a tokenizer's folder


def prepare_tokenizer(config: Config, run: Path, mixture: Mixture, start: Start, site: Site) -> PreTrainedTokenizerBase:
    """The run's tokenizer, saved in its folder: kept on resume, else the encoder's own, a given one, or trained.

    Beside it, where the task is to answer questions, come the answers there are to choose among.

    Raises:
        UserError: the folder cannot be written, or no answer is frequent enough.
    """
    folder, source = run / TOKENIZER, tokenizer_source(config, run, start)
    if dist.rank() == 0 and source != str(folder):
        _make_folder(run)
        tokenizer = _trained(config, mixture) if source == TRAINED else load_tokenizer(source)
        try:
            save_tokenizer(tokenizer, folder)
            if config.task.name == "vqa":
                save_answers(find_answers(config, mixture, start), folder / ANSWERS)
        except UserError:
            raise
        except Exception as error:  # the tokenizers library raises nothing more particular
            raise UserError(f"{folder} cannot be written ({error}): free some room or set run.dir.") from None
    dist.barrier()
    if not site.is_whole:
        _copy_to_sites(folder, site)
    return load_tokenizer(str(folder))


def tokenizer_source(config: Config, run: Path, start: Start) -> str:
    """Where the run's tokenizer is loaded from, or `TRAINED`: kept on resume, else the encoder's own or a given one."""
    if start.resumes and (run / TOKENIZER).is_dir():
        return str(run / TOKENIZER)
    if start.checkpoint and (start.resumes or config.data.tokenizer == ""):
        return str(start.checkpoint.parent.parent / TOKENIZER)
    return config.data.tokenizer or config.model.text


def _trained(config: Config, mixture: Mixture) -> PreTrainedTokenizerBase:
    return train_tokenizer(_texts(config, mixture), config.data.vocabulary)


def _texts(config: Config, mixture: Mixture) -> Iterator[str]:
    """All that the text encoder will read."""
    for content in _sound(mixture):
        yield from SENTENCES[config.task.name](content.own) if config.task.is_labelled else content.captions


def _sound(mixture: Mixture) -> Iterator[Row]:
    """The rows that are what was written; the others are told."""
    return mixture.sound(range(len(mixture)), lambda error: print(f"Left out: {error}", file=sys.stderr))


def find_answers(config: Config, mixture: Mixture, start: Start) -> tuple[str, ...]:
    """What questions are answered by: as in the run that this one goes on with, or the frequent ones of the data.

    Raises:
        UserError: no answer is frequent enough.
    """
    if start.checkpoint and start.resumes:
        return load_answers(start.checkpoint.parent.parent / TOKENIZER / ANSWERS)
    of_people = (content.own["answers"] for content in _sound(mixture))
    answers = frequent_answers(of_people, config.task.answer_minimum)
    if not answers:
        raise UserError(
            f"No answer is that of {config.task.answer_minimum} questions of data.train: lower task.answer_minimum, "
            "or give more data."
        )
    return answers


def _copy_to_sites(folder: Path, site: Site) -> None:
    """Give every node that has a run folder of its own what rank 0 has in this folder of its one."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()} if dist.rank() == 0 else {}
    for name, content in dist.broadcast_object(files).items():
        if site.leads and dist.rank():
            _make_folder(folder)
            try:
                (folder / name).write_bytes(content)
            except OSError as error:
                raise UserError(f"{folder} cannot be written ({error}): free some room or set run.dir.") from None
    dist.barrier()


def build_model(
    config: Config, tokenizer: PreTrainedTokenizerBase, start: Start, classes: int, load_weights: bool = True
) -> tuple[Encoders, Started | None]:
    """The model with the weights it starts from; without any where it goes on from a checkpoint.

    Args:
        classes: that a fine-tuning task chooses among; 0 = no such task.
        load_weights: False leaves out pretrained ones, for a model on the meta device.

    Returns:
        The model, and what it started from.

    Raises:
        UserError: the weights asked for cannot be had, or are another model's.
    """
    torch.manual_seed(config.run.seed)
    if start.checkpoint and start.resumes:
        return offline_model(config, start.checkpoint), None
    scratch = start.checkpoint is None
    built = with_encoders_of(config, config.checkpoint.init) if scratch and config.checkpoint.init else config
    pretrained = load_weights and scratch
    model = TaskModel(built, tokenizer, classes, pretrained) if classes else MaskVLM(built, tokenizer, pretrained)
    model.config = config
    return model, take_weights(model, start.checkpoint) if start.checkpoint else started(model)


def describe_run(
    run: Path,
    config: Config,
    ds_config: dict[str, Any],
    model: Encoders,
    layout: dict[str, Any],
    site: Site,
    beginning: Started | None,
) -> None:
    """Write config.toml, deepspeed.json, the text encoder's description and run.json, once into each run folder.

    Where the run begins, also what its weights started from, to the last tensor.
    """
    hosts = dist.gather_objects(socket.gethostname())
    if not site.leads:
        return
    names = ("torch", "deepspeed", "transformers", "timm", "pyarrow")
    facts = {
        "world": dist.world(),
        **layout,
        "hosts": hosts,
        "device": str(dist.device()),
        "command": shlex.join(sys.argv),
        "versions": {"mvlm": __version__, "python": sys.version.split()[0]} | {name: version(name) for name in names},
        "config": dataclasses.asdict(config),
        "deepspeed": ds_config,
    }
    try:
        write_durably(run / "config.toml", dump_config(config))
        write_durably(run / "deepspeed.json", json.dumps(ds_config, indent=1))
        model.text.settings.save_pretrained(run / TEXT_ENCODER)
        if beginning:
            write_durably(run / STARTED, beginning.to_json())
        write_durably(run / "run.json", json.dumps(facts, indent=1))
    except OSError as error:
        raise UserError(f"The run folder {run} cannot be written ({error}): free some room or set run.dir.") from None


def _make_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The run folder {run} cannot be made ({error}): set run.dir to a place you may write."
        ) from None
