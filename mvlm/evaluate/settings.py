"""What `mvlm evaluate` was asked to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.samples.pictures import Pictures
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.schema import CAPTION
from mvlm.evaluate.retrieval import SearchSettings
from mvlm.pretrained.runs import Loaded
from mvlm.runtime.log import log


@dataclass(frozen=True)
class Settings:
    """The settings of all tasks; each reads those that concern it."""

    data: tuple[str, ...]  # shard folders or, for some tasks, folders of pictures
    limit: int  # first rows used; 0 = all
    search: SearchSettings  # `batch` and `memory_gb` concern every task
    words: tuple[str, ...] = ()  # reconstruction: words to mask; none = tokens as in training
    templates: str = ""  # classification: a file of sentences with {} for the class; "" = TEMPLATES
    train: str = ""  # probe: the folder that it learns from
    pictures: str = ""  # reconstruction: the folder that examples are drawn into; "" = none
    where: str = ""  # retrieval, reconstruction, labelled tasks: a condition on the rows, as data.where; "" = all

    def mixture(self, task: str = CAPTION) -> Mixture:
        """The shards; raises `UserError` if they or the condition cannot be used."""
        return Mixture(self.data, task=task, where=[self.where])


def reading_of(loaded: Loaded[Any]) -> tuple[PreTrainedTokenizerBase, int, int]:
    """How a model reads: its tokenizer, the most tokens of a text, and the pixels per side of an image."""
    blueprint = loaded.blueprint
    return load_tokenizer(str(loaded.tokenizer_folder)), blueprint.text_length, blueprint.model.image_size


def open_pictures(loaded: Loaded[Any], paths: Sequence[Path], sentences: Sequence[str] = ()) -> Pictures:
    """Picture files and sentences, read as the model reads them; says where sentences are cut."""
    pictures = Pictures(paths, sentences, *reading_of(loaded))
    if cut := pictures.tokens.cut_warning(sentences):
        log.warning(cut)
    return pictures


def captions_of(loaded: Loaded, settings: Settings) -> EvalDataset:
    """Shards of images and captions, read with the model's tokenizer."""
    return EvalDataset(settings.mixture(), *reading_of(loaded), settings.limit)
