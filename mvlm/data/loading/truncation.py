"""Whether a run will cut the texts that it reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from mvlm.data.loading.sampler import make_sampler, order_of
from mvlm.data.samples.dataset import ShardDataset

LOOKED_AT = 256
"""Rows whose texts are measured before a run begins."""


def truncation_warning(dataset: ShardDataset[Any]) -> str:
    """A sentence if texts of the first rows that a run draws are cut; "" if all of them are read whole.

    Rows at URLs are skipped: they would have to be fetched before the run begins.
    """
    mixture, data = dataset.mixture, dataset.data
    sampler = make_sampler(mixture, dataset.seed, [order_of(data)])
    drawn = sampler(np.arange(min(LOOKED_AT, len(dataset))))[0].tolist()
    numbers = mixture.numbers
    local_rows = dict.fromkeys(numbers.visit(number)[0] for number in drawn if numbers.is_local(number))
    sentences = [sentence for content in mixture.sound(local_rows) for sentence in dataset.sentences(content)]
    cut = dataset.captions.describe_truncation(sentences)
    where = f"Texts are cut at data.text_length = {data.text_length}"
    return f"{where}: in the first rows {cut}, and lose their ends; raise it to read them whole." if cut else ""
