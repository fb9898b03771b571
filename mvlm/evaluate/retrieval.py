"""Image-text retrieval: ITC orders everything, ITM re-ranks ITC's first k (paper, section 4.2).

Images and texts are encoded, split over ranks, once for ITC, which keeps a vector of each, and once for ITM, but never
once per pair; similarities are computed in tiles. One setting bounds what is held at once (mvlm/evaluate/memory.py).
The numbers are the same on any number of ranks, to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvlm.config.schema import Eval
from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.samples.pictures import ImagesAndTexts
from mvlm.evaluate import intervals, memory, ranking, shares
from mvlm.evaluate.matching import match_pairs
from mvlm.evaluate.memory import Sizes, Tokens
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime.wording import counted


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Args:
        batch: most images, texts or ITM pairs in a forward pass.
        rerank: candidates per query that ITM re-ranks; 0, or a model trained without ITM, leaves ITC's order.
        memory_gb: the most held on a rank's device besides the weights, in 1e9 bytes.
        equal_captions: a caption is right wherever an equal one is, for images and for captions.
    """

    batch: int
    rerank: int
    memory_gb: float
    equal_captions: bool = False

    @classmethod
    def of(cls, settings: Eval) -> SearchSettings:
        """From a run's [eval]."""
        return cls(settings.batch, settings.rerank, settings.memory_gb)

    def sizes(self, model: MaskVLM, data: ImagesAndTexts) -> Sizes:
        """How much is held at once of these images and texts; raises like `memory.sizes`."""
        tokens = Tokens.of(model, data.tokens.length)
        return memory.sizes(self.memory_gb, self.batch, len(data), len(data.captions), tokens)


@dataclass(frozen=True)
class Direction:
    """The answers to the A queries of one direction; ranks begin at 0."""

    right: ranking.RelevantItems
    itc_A: np.ndarray  # rank of the best-placed right item
    reranked_A: np.ndarray | None  # the same after ITM; None if nothing was re-ranked
    summed_A: np.ndarray | None  # the same by ITM and ITC together, as a search orders
    top_AK: np.ndarray  # the first items in the final order, which is ITM's
    cosine_AK: np.ndarray  # of the first items by ITC, in its order


@dataclass(frozen=True)
class Retrieval:
    image_to_text: Direction
    text_to_image: Direction
    search: SearchSettings  # its `rerank` is 0 if nothing was re-ranked


def evaluate_retrieval(
    model: MaskVLM, dataset: EvalDataset, search: SearchSettings, device: torch.device
) -> dict[str, Any]:
    """Recall at 1, 5 and 10 in both directions, as shares, with chance and the protocol; see `summary`.

    Raises:
        UserError: `search.memory_gb` does not hold one pair.
    """
    return summary(retrieve(model, dataset, search, device), dataset)


def retrieve(model: MaskVLM, dataset: EvalDataset, search: SearchSettings, device: torch.device) -> Retrieval:
    """Order all captions for each image and all images for each caption.

    Raises:
        UserError: `search.memory_gb` does not hold one pair.
    """
    rerank = search.rerank if model.objectives.itm else 0
    search = replace(search, rerank=rerank)
    of_image, of_caption = ranking.answers(dataset.owner, len(dataset), _labels(dataset, search.equal_captions))
    sizes = search.sizes(model, dataset)
    with shares.inference(model):
        image_NE, text_ME = (
            image_features(model, dataset, sizes.batch, device),
            text_features(model, dataset, sizes.batch, device),
        )
        shown = max(rerank, max(ranking.RECALLS))
        to_text = rank_items(image_NE, text_ME, of_image, shown, sizes)
        to_image = rank_items(text_ME, image_NE, of_caption, shown, sizes)
        if rerank:
            scores = _match(model, dataset, sizes, device, to_text.top_AK[:, :rerank], to_image.top_AK[:, :rerank])
            temperature = float(model.contrastive_scale()[0])
            to_text, to_image = (
                _reranked(found, odds_AK, temperature)
                for found, odds_AK in zip((to_text, to_image), scores, strict=True)
            )
    return Retrieval(to_text, to_image, search)


def summary(found: Retrieval, dataset: EvalDataset) -> dict[str, Any]:
    """`image_to_text` and `text_to_image`, each {`itc`, `reranked`, `summed` (None if not done)}: {r1, r5, r10} in
    shares and `median_rank` from 1; `mean_recall` of the six, likewise; `interval`, the same tree with the lower and
    upper end of each; `chance`, the greater of the two directions; `images`, `captions`; `protocol`, a few sentences.
    """
    images, captions = len(dataset), len(dataset.captions)
    by_chance = (
        ranking.chance(found.image_to_text.right.counts(), captions),
        ranking.chance(found.text_to_image.right.counts(), images),
    )
    kinds = KINDS if found.search.rerank else KINDS[:1]

    def scores(drawn_RN: np.ndarray) -> dict[str, np.ndarray]:
        return _scores(found, kinds, drawn_RN, drawn_RN[:, dataset.owner])

    return {
        **_tree(intervals.point(images, scores), kinds),
        "interval": _tree(intervals.bootstrap(images, scores), kinds),
        "chance": {key: max(shares[key] for shares in by_chance) for key in by_chance[0]},
        "images": images,
        "captions": captions,
        "protocol": _protocol(dataset, found.search),
    }


def _labels(dataset: EvalDataset, equal_captions: bool) -> np.ndarray:
    """A number for each caption, shared by equal ones if they count as one."""
    if not equal_captions:
        return np.arange(len(dataset.captions))
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(caption.strip(), len(numbers)) for caption in dataset.captions])


DIRECTIONS = ("image_to_text", "text_to_image")
KINDS = ("itc", "reranked", "summed")
"""By ITC; by ITM, as the paper does; by ITM and ITC together, as a search does."""


def _scores(
    found: Retrieval, kinds: tuple[str, ...], weight_RN: np.ndarray, weight_RM: np.ndarray
) -> dict[str, np.ndarray]:
    """Every number by direction/kind/name, given how often each image and caption counts in each of R resamples."""
    numbers: dict[str, np.ndarray] = {}
    for kind in kinds:
        for direction, weight_RA in zip(DIRECTIONS, (weight_RN, weight_RM), strict=True):
            rank_A = getattr(getattr(found, direction), f"{kind}_A")
            passed_RB = ranking.passed(rank_A, weight_RA)
            for k in ranking.RECALLS:
                numbers[f"{direction}/{kind}/r{k}"] = ranking.recall(passed_RB, k)
            numbers[f"{direction}/{kind}/median_rank"] = ranking.median_rank(passed_RB)
        six = [numbers[f"{direction}/{kind}/r{k}"] for direction in DIRECTIONS for k in ranking.RECALLS]
        numbers[f"mean_recall/{kind}"] = np.mean(six, axis=0)
    return numbers


def _tree(numbers: dict[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    """By direction or mean_recall, then by kind, with None for kinds that were not computed."""
    not_done = [kind for kind in KINDS if kind not in kinds]
    return intervals.nested(numbers, {key: dict.fromkeys(not_done) for key in (*DIRECTIONS, "mean_recall")})


def _protocol(dataset: EvalDataset, search: SearchSettings) -> str:
    again = (
        f"ITM orders the first {search.rerank} of each query again, or ITM's log-odds and ITC's logit together, as a "
        "search does, and the others stay behind them in ITC's order"
        if search.rerank
        else "not re-ranked by ITM"
    )
    right = (
        "an image counts as found at its best-placed caption or one equal to it, a caption at its image or one that "
        "has an equal caption"
        if search.equal_captions
        else "an image counts as found at its best-placed caption, a caption at its one image"
    )
    return (
        f"{counted(len(dataset), 'image')} and {counted(len(dataset.captions), 'caption')}, all of them candidates of "
        "every query; "
        f"{dataset.reported_length}; "
        f"ITC orders them by cosine similarity, {again}; {right}; equal scores keep the order of the data. "
        f"Mean recall is that of R@1, R@5 and R@10 both ways; the median rank begins at 1. "
        f"{intervals.explain('the images, each with its captions')}"
    )


def image_features(model: MaskVLM, dataset: ImagesAndTexts, batch: int, device: torch.device) -> Tensor:
    """The contrastive features of all images, NE."""
    parts = []
    for rows in shares.batches(len(dataset), batch):
        image_BSD = model.encode_image(dataset.images(rows.tolist()).to(device))
        parts.append(model.project_image(image_BSD))
    return shares.gather(parts, len(dataset))


def text_features(model: MaskVLM, dataset: ImagesAndTexts, batch: int, device: torch.device) -> Tensor:
    """The contrastive features of all captions, ME."""
    parts = []
    for indices in shares.batches(len(dataset.captions), batch):
        text_BL, valid_BL = (tensor.to(device) for tensor in dataset.texts(indices.tolist()))
        parts.append(model.project_text(model.encode_text(text_BL, valid_BL)))
    return shares.gather(parts, len(dataset.captions))


def rank_items(query_AE: Tensor, item_NE: Tensor, right: ranking.RelevantItems, top: int, sizes: Sizes) -> Direction:
    """All items in the order of their inner product with each query, in tiles of queries split over ranks."""
    ranks, tops, cosines = [], [], []
    for queries in shares.batches(len(query_AE), max(1, sizes.similarities // len(item_NE))):
        similarity_AN = query_AE[torch.from_numpy(queries)] @ item_NE.T
        right_AR = torch.from_numpy(right.padded(queries)).to(query_AE.device)
        rank_A, top_AK = ranking.rank_tile(similarity_AN, right_AR, top)
        ranks.append(rank_A)
        tops.append(top_AK)
        cosines.append(similarity_AN.gather(1, top_AK))
    rank_A, top_AK, cosine_AK = (shares.gather(parts, len(query_AE)).cpu() for parts in (ranks, tops, cosines))
    return Direction(right, rank_A.numpy(), None, None, top_AK.numpy(), cosine_AK.float().numpy())


def _match(
    model: MaskVLM,
    dataset: EvalDataset,
    sizes: Sizes,
    device: torch.device,
    image_top: np.ndarray,
    text_top: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """ITM's log-odds of every candidate: [images, K] of captions and [captions, K] of images.

    A pair that is a candidate in both directions is matched once.
    """
    captions = len(dataset.captions)
    wanted = (
        np.arange(len(image_top))[:, None] * captions + image_top,
        text_top * captions + np.arange(len(text_top))[:, None],
    )
    pairs, where = np.unique(np.concatenate([w.ravel() for w in wanted]), return_inverse=True)
    scores = match_pairs(model, dataset, pairs, sizes, device)[where]
    image_score, text_score = np.split(scores, [image_top.size])
    return image_score.reshape(image_top.shape), text_score.reshape(text_top.shape)


def _reranked(direction: Direction, odds_AK: np.ndarray, temperature: float) -> Direction:
    top_AK, candidates = direction.top_AK, odds_AK.shape[1]
    score_AK = ranking.search_scores(odds_AK, direction.cosine_AK[:, :candidates], temperature)
    first_AK, summed_AK = (ranking.rerank(top_AK[:, :candidates], each) for each in (odds_AK, score_AK))
    rank_A, summed_A = (ranking.reranked_rank(direction.itc_A, each, direction.right) for each in (first_AK, summed_AK))
    return replace(
        direction,
        reranked_A=rank_A,
        summed_A=summed_A,
        top_AK=np.concatenate([first_AK, top_AK[:, candidates:]], axis=1),
    )
