"""A corpus as a crawl leaves it: some of its images have the captions of others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.claim.corpora import Corpus
from data_tools.pipeline import Options
from data_tools.record import Record
from data_tools.sharding import shard
from mvlm.data.shards.mixture import Mixture

EXCHANGED = 0.3
"""Share of the images that get another's captions."""


@dataclass(frozen=True)
class NoisyCorpus(Corpus):
    """The claim's corpus, but some of its training images have the captions of others.

    Each row's metadata has `exchanged`, whether it is one of them, and `pick`, its place in a random order.
    """

    noisy: str = ""

    def train(self, share: int, tune: str = "") -> list[str]:
        return [self.noisy]


def with_noise(corpus: Corpus, seed: int, folder: Path) -> NoisyCorpus:
    """The corpus with a seed's exchanges, made in `folder` unless it is there."""
    out = folder / "corpora" / f"{corpus.name}-noisy-{seed}"
    if not out.exists():
        making = out.with_name(f"{out.name}.making-{os.getpid()}")
        shard(_records(Mixture(corpus.train(100)), seed), making, Options(workers=1))
        try:
            os.rename(making, out)
        except OSError:  # another process was first
            shutil.rmtree(making)
    return NoisyCorpus(corpus.name, corpus.folder, corpus.foils, corpus.questions, corpus.words, str(out))


def exchanges(captions: Sequence[tuple[str, ...]], rng: np.random.Generator) -> np.ndarray:
    """int64 [rows]: the row whose captions each row gets, its own or, for a share of `EXCHANGED`, another's.

    The chosen rows pass theirs on in a circle, so that the captions of the corpus stay the same.
    """
    chosen = rng.permutation(len(captions))[: round(EXCHANGED * len(captions))]
    source = np.arange(len(captions))
    source[chosen] = np.roll(chosen, 1)
    if any(captions[row] == captions[source[row]] for row in chosen):
        return exchanges(captions, rng)
    return source


def _records(mixture: Mixture, seed: int) -> Iterator[Record]:
    rng = np.random.default_rng(seed)
    captions = [tuple(mixture.row(row).captions) for row in range(len(mixture))]
    source, pick = exchanges(captions, rng), rng.permutation(len(mixture))
    for number in range(len(mixture)):
        row = mixture.row(number)
        fields = {"exchanged": int(source[number] != number), "pick": int(pick[number])}
        yield Record(row.key, bytes(row.image), captions[source[number]], "noisy", fields)
