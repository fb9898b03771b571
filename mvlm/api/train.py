"""From a folder of captioned pictures to a trained model, in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from mvlm.api.corpus import prepare
from mvlm.api.dictionary import make_dictionary
from mvlm.api.recipe import DICTIONARY_SIZE, choose, is_small
from mvlm.api.results import RECIPE, TrainedRun, follow_recipe, require_data, write_recipe
from mvlm.config.places import as_path
from mvlm.pretrained.packaged import small_encoders
from mvlm.runtime.arguments import path_of
from mvlm.runtime.wording import counted

SHARDS = "shards"
DICTIONARY = "dictionary.safetensors"


def train(
    data: str | os.PathLike[str], out: str | os.PathLike[str], settings: Mapping[str, Any] | None = None
) -> TrainedRun:
    """Train a model on captioned pictures: `mvlm.train("pictures/", out="runs/mine")`.

    Shards the pictures with a tenth held out, chooses a recipe to suit their number and this machine, trains on all of
    its GPUs or on the CPU, evaluates, and writes a report. Every choice is printed, and recorded in the run folder's
    `recipe.toml`. Called again, it resumes.

    Args:
        data: a folder with `captions.jsonl` or with a text file beside each picture, a tar of either or a pattern of
            tars, a table (CSV, TSV, JSON lines, a JSON list), parquet, a data set saved by Hugging Face's datasets, or
            shards.
        out: the run folder.
        settings: keys of the run TOML to change, such as `{"train.steps": 300, "optim.lr": 1e-3}`.

    Raises:
        UserError: something is wrong with the pictures or the settings, or training failed; the message says what to
            do.
    """
    run = path_of("out", out)
    corpus = prepare(as_path(data), run / SHARDS)
    if not (run / RECIPE).exists():
        gpus, encoders, dictionary = torch.cuda.device_count(), small_encoders(), (run / DICTIONARY).absolute()
        if encoders is None and is_small(corpus.images, gpus):
            make_dictionary(corpus.train, dictionary, DICTIONARY_SIZE)
        chosen = choose(corpus.images, corpus.train, corpus.eval, run.absolute(), gpus, encoders or dictionary)
        write_recipe(run, chosen, f"Chosen by mvlm.train for {counted(corpus.images, 'image')}.")
    else:
        require_data(run, corpus.train)
    follow_recipe(run, settings, "retrieval", corpus.eval)
    return TrainedRun(run)
