"""The nearest images in an index: ranked by ITC's features, the first re-ranked by ITM if the query is a sentence."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from usearch.index import BatchMatches, Index, Matches

from mvlm.data.images.decode import load_image
from mvlm.data.images.encoded import BadImage, why_bad
from mvlm.data.samples.evaluation import EvalImages
from mvlm.data.samples.padding import BatchTokenizer
from mvlm.data.samples.pictures import ImagesAndTexts
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.corpus import Corpus
from mvlm.data.shards.location import ShardLocation, open_location
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from mvlm.evaluate import memory, ranking, shares
from mvlm.evaluate.matching import match_pairs
from mvlm.evaluate.memory import Tokens
from mvlm.evaluate.settings import reading_of
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.runs import Loaded
from mvlm.search.folder import open_table, open_vectors, read_contents

EXACT = 1 << 20
"""The most images that are all compared, in tenths of a second; in larger indexes the graphs are followed, which may
miss some."""

WIDTH_OF_SEARCH = 512
"""Candidates considered in a graph; usearch's default of 64 misses more."""


@dataclass(frozen=True)
class SearchHit:
    """An image of the index.

    Args:
        image: its number in the index.
        shard, row, key, caption: as in the index's table.
        similarity: the cosine of the query's ITC feature and the index's.
        match: ITM's probability; None if ITM was not used.
    """

    image: int
    shard: str
    row: int
    key: str
    caption: str
    similarity: float
    match: float | None = None


class ImageIndex:
    """An index opened for the model that made it.

    Raises:
        UserError: there is no index, it is damaged, or other weights made it.
    """

    def __init__(self, folder: Path, loaded: Loaded[MaskVLM]) -> None:
        self.folder, self._loaded = folder, loaded
        self.contents = read_contents(folder)
        if self.contents.weights != loaded.fingerprint:
            raise UserError(
                f"{folder} was made with other weights, of step {self.contents.step}, and this checkpoint is of step "
                f"{loaded.step}: give the checkpoint that made it, or make it again with `mvlm index`."
            )
        self._vectors, self._table = open_vectors(folder, self.contents), open_table(folder, self.contents)

    def __len__(self) -> int:
        """The number of images."""
        return self.contents.rows

    def stands_at(self, folder: Path) -> bool:
        """Whether the folder still holds what was opened here: another index may have replaced it."""
        return folder == self.folder and read_contents(folder) == self.contents

    @cached_property
    def reading(self) -> tuple[BatchTokenizer, int]:
        """The tokenizer for queries, and the side of images in pixels; loaded at the first query."""
        tokenizer, length, side = reading_of(self._loaded)
        return BatchTokenizer(tokenizer, length), side

    def nearest(self, query_E: Tensor, count: int) -> list[SearchHit]:
        """The `count` images with the greatest cosine to a feature, best first; equal ones in the index's order."""
        query = query_E.float().cpu().numpy()
        images, similarities, gone = [], [], self._taken_down
        for part in self._vectors:
            matches = _nearest_of(part, query, count + len(gone), exact=len(self) <= EXACT)
            images.append(matches.keys.astype(np.int64))
            similarities.append(1 - matches.distances)
        image_K, similarity_K = np.concatenate(images), np.concatenate(similarities)
        order = np.lexsort((image_K, -similarity_K))
        best = order[~np.isin(image_K[order], gone)][:count]
        return [self._describe(int(image_K[at]), float(similarity_K[at])) for at in best]

    def picture(self, image: int) -> Image.Image:
        """The image with this number, decoded in full.

        Raises:
            UserError: the shards are not those that were indexed, or the image is damaged.
        """
        row = self.row(image)
        content = self.shards.row(row)
        try:
            return load_image(content.image)
        except BadImage as error:
            raise UserError(
                f"{self.shards.where(row)} (key {content.key!r}): {why_bad(error)}: copy or shard it again."
            ) from None

    @cached_property
    def shards(self) -> Mixture:
        """The shards that were indexed, opened when an image is first needed.

        Raises:
            UserError: they were moved or changed.
        """
        data = self._loaded.data
        folders = [indexed.folder for indexed in self.contents.shards]
        try:
            mixture = Mixture(folders, cache=Cache(data.cache, data.cache_gb))
        except UserError as error:
            raise UserError(
                f"The shards of {self.folder} are not where they were indexed ({str(error).rstrip('.')}): put them "
                "back, or index them where they are with `mvlm index`."
            ) from None
        for corpus, indexed in zip(mixture.corpora, self.contents.shards, strict=True):
            if corpus.manifest.fingerprint != indexed.fingerprint:
                raise UserError(
                    f"{indexed.folder} has changed since {self.folder} was made: index it again with `mvlm index`."
                )
        return mixture

    def row(self, image: int) -> int:
        """The row of an image in `shards`; raises `UserError` if it was taken down."""
        entry = self._table.slice(image, 1).to_pylist()[0]
        first, corpus, number = self._places[entry["shard"]]
        start = corpus.selection.shard_rows[number] if corpus.selection else corpus.shard_starts[number]
        row: int = start + entry["row"]
        if not corpus.selection:
            return first + row
        if row not in corpus.selection.rows:
            raise UserError(
                f"{entry['shard']} row {entry['row']} (key {entry['key']!r}) was taken down: ask for another."
            )
        return first + corpus.selection.rows.rank(row)

    def place(self, image: int) -> tuple[str, int]:
        """The shard that an image is in, and its row there."""
        entry = self._table.slice(image, 1).to_pylist()[0]
        return entry["shard"], entry["row"]

    def shard(self, name: str) -> tuple[ShardLocation, int]:
        """The location of a shard, and its number there; raises as `shards`."""
        _, corpus, number = self._places[name]
        return corpus.location, number

    @cached_property
    def _places(self) -> dict[str, tuple[int, Corpus, int]]:
        """By shard name: the first row of its corpus, the corpus, and the shard's number in it."""
        starts = accumulate(map(len, self.shards.corpora), initial=0)
        return {
            corpus.location.name(number): (first, corpus, number)
            for first, corpus in zip(starts, self.shards.corpora, strict=False)
            for number in range(len(corpus.manifest.shards))
        }

    @cached_property
    def _taken_down(self) -> np.ndarray:
        """The images taken down since they were indexed, int64; without those of shards that cannot be opened."""
        gone: set[tuple[str, int]] = set()
        for indexed in self.contents.shards:
            try:
                location = open_location(indexed.folder, Cache())
            except UserError:
                continue
            starts = list(accumulate(location.manifest.shards.rows, initial=0))
            for row in location.taken_down:
                number = bisect_right(starts, row) - 1
                gone.add((location.name(number), row - starts[number]))
        if not gone:
            return np.zeros(0, np.int64)
        places = zip(self._table["shard"].to_pylist(), self._table["row"].to_pylist(), strict=True)
        return np.array([image for image, place in enumerate(places) if place in gone], np.int64)

    def _describe(self, image: int, similarity: float) -> SearchHit:
        return SearchHit(image, **self._table.slice(image, 1).to_pylist()[0], similarity=similarity)


def _nearest_of(part: Index, query: np.ndarray, count: int, exact: bool) -> Matches | BatchMatches:
    """The `count` best of a vector file and, if all are compared, those equal to the last of them: among equal ones
    usearch keeps arbitrary ones, and others when more are asked for."""
    asked = min(count + exact, len(part))
    while True:
        part.expansion_search = max(WIDTH_OF_SEARCH, asked)  # type: ignore[misc]  # it has a setter
        found = part.search(query, asked, exact=exact)
        if not exact or asked == len(part) or found.distances[count - 1] < found.distances[-1]:
            return found
        asked = min(2 * asked, len(part))


class _Candidates(ImagesAndTexts):
    """Images of an index and a sentence to match with each, as `match_pairs` reads them."""

    def __init__(self, index: ImageIndex, images: Sequence[int], sentence: str, tokens: BatchTokenizer, size: int):
        self.captions, self.tokens, self._numbers = [sentence], tokens, images
        self._index, self._all = index, EvalImages(index.shards, len(index), size)

    def __len__(self) -> int:
        return len(self._numbers)

    def images(self, rows: Sequence[int]) -> Tensor:
        return self._all.images([self._index.row(self._numbers[row]) for row in rows])


def find_by_sentence(
    index: ImageIndex, loaded: Loaded[MaskVLM], sentence: str, top: int, rerank: int, device: torch.device
) -> list[SearchHit]:
    """The `top` images for a sentence; ITC's first `rerank` are re-ranked with ITM, if the model was trained for it.

    Raises:
        UserError: the sentence is empty, or the shards, which re-ranking reads, were moved, changed or damaged.
    """
    if not sentence.strip():
        raise UserError("The sentence is empty: write what to look for.")
    model, settings, (tokens, side) = loaded.model, loaded.eval, index.reading
    rerank = rerank if loaded.blueprint.objectives.itm else 0
    with shares.inference(model):
        text_1L, valid_1L = (tensor.to(device) for tensor in tokens.batch([sentence]))
        feature_E = model.project_text(model.encode_text(text_1L, valid_1L))[0]
        found = index.nearest(feature_E, max(top, rerank))
        first = [each.image for each in found[:rerank]]
        if not first:
            return found[:top]
        candidates = _Candidates(index, first, sentence, tokens, side)
        sizes = memory.sizes(settings.memory_gb, settings.batch, len(first), 1, Tokens.of(model, tokens.length))
        odds_K = match_pairs(model, candidates, np.arange(len(first)), sizes, device)
        cosine_K = np.array([each.similarity for each in found[:rerank]])
        score_K = ranking.search_scores(odds_K, cosine_K, float(model.contrastive_scale()[0]))
    order = ranking.rerank(np.arange(len(first))[None], score_K[None])[0]
    match_K = ranking.match_probability(odds_K)
    matched = [replace(found[at], match=float(match_K[at])) for at in order]
    return (matched + found[rerank:])[:top]


def find_by_image(
    index: ImageIndex, loaded: Loaded[MaskVLM], image_1CHW: Tensor, top: int, device: torch.device
) -> list[SearchHit]:
    """The `top` images most similar to a given one, by ITC's features alone.

    Args:
        image_1CHW: uint8, as the model reads it.
    """
    model = loaded.model
    with shares.inference(model):
        feature_E = model.project_image(model.encode_image(image_1CHW.to(device)))[0]
    return index.nearest(feature_E, top)
