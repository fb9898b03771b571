"""What `mvlm evaluate` was asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.data.shards.corpus import Mixture
from mvlm.evaluate.retrieval import Search
from mvlm.pretrained.runs import Loaded


@dataclass(frozen=True)
class Settings:
    """Of all tasks; each reads those that concern it."""

    data: tuple[str, ...]  # shard folders or, of some tasks, folders of pictures
    limit: int  # first rows used; 0 = all
    search: Search  # `batch` and `memory_gb` concern every task
    words: tuple[str, ...] = ()  # reconstruction: words to hide; none = tokens drawn as in training
    templates: str = ""  # classification: a file of sentences with {} for the class; "" = TEMPLATES
    train: str = ""  # probe: the folder that it learns from


def captions_of(loaded: Loaded, settings: Settings) -> EvalDataset:
    """Shards of images and captions, read with the model's tokenizer."""
    tokenizer = load_tokenizer(str(loaded.tokenizer_folder))
    length, size = loaded.config.data.text_length, loaded.config.model.image_size
    return EvalDataset(Mixture(settings.data), tokenizer, length, size, settings.limit)
