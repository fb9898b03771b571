"""The best sentences for an image, and the best images for a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mvlm.data.samples.pictures import Pictures
from mvlm.evaluate import ranking, shares
from mvlm.evaluate.matching import match_pairs
from mvlm.evaluate.retrieval import SearchSettings, image_features, rank_items, text_features
from mvlm.evaluate.settings import open_pictures
from mvlm.model.maskvlm import MaskVLM
from mvlm.predict.attention import attention_strips
from mvlm.predict.prediction import Answer, Asked, file_name, printable
from mvlm.pretrained.runs import Loaded


def best(
    model: MaskVLM, pictures: Pictures, search: SearchSettings, top: int, device: torch.device, of_images: bool
) -> list[list[dict[str, Any]]]:
    """The `top` sentences for each image or, if not `of_images`, the `top` images for each sentence.

    Returns:
        For each query its answers, best first: {`item`: its number, `similarity`: the cosine of ITC, `match`: the
        probability by ITM, None beyond the `search.rerank` items that it re-ranks}.
    """
    sentences, sizes = len(pictures.captions), search.sizes(model, pictures)
    with shares.inference(model):
        query_AE = image_features(model, pictures, sizes.batch, device)
        item_NE = text_features(model, pictures, sizes.batch, device)
        if not of_images:
            query_AE, item_NE = item_NE, query_AE
        rerank = min(len(item_NE), search.rerank if model.objectives.itm else 0)
        nothing = np.empty(0, dtype=np.int64)
        unknown = ranking.RelevantItems(
            ranking.Lists.of(nothing, nothing, len(query_AE)), ranking.Lists.of(nothing, nothing, 0)
        )
        by_itc = rank_items(query_AE, item_NE, unknown, max(top, rerank), sizes)
        top_AK = by_itc.top_AK
        match_AN: dict[tuple[int, int], float] = {}
        if rerank:
            query_AK, first_AK = np.arange(len(top_AK))[:, None], top_AK[:, :rerank]
            pairs = query_AK * sentences + first_AK if of_images else first_AK * sentences + query_AK
            order = np.argsort(pairs, axis=None)
            odds = np.empty(pairs.size, dtype=np.float32)
            odds[order] = match_pairs(model, pictures, pairs.ravel()[order], sizes, device)
            odds_AK = odds.reshape(pairs.shape)
            match_AK = ranking.match_probability(odds_AK)
            for query, (items, row) in enumerate(zip(first_AK.tolist(), match_AK.tolist(), strict=True)):
                match_AN |= {(query, item): match for item, match in zip(items, row, strict=True)}
            temperature = float(model.contrastive_scale()[0])
            score_AK = ranking.search_scores(odds_AK, by_itc.cosine_AK[:, :rerank], temperature)
            top_AK = np.concatenate([ranking.rerank(first_AK, score_AK), top_AK[:, rerank:]], axis=1)

    def answer(query: int, item: int) -> dict[str, Any]:
        similarity = float(query_AE[query] @ item_NE[item])
        return {"item": item, "similarity": similarity, "match": match_AN.get((query, item))}

    return [[answer(query, item) for item in row[:top]] for query, row in enumerate(top_AK.tolist())]


@dataclass
class Best:
    """The best items, sentences or images, for each query, an image or a sentence."""

    name: str
    query: str
    item: str

    def run(self, loaded: Loaded, asked: Asked, device: torch.device) -> Answer:
        pictures, of_images = open_pictures(loaded, asked.images, asked.sentences), self.query == "image"
        entries, lines, drawings = [], [], {}
        given = {"image": [str(path) for path in asked.images], "sentence": asked.sentences}
        found = best(loaded.model, pictures, asked.search, asked.top, device, of_images)
        for number, (query, answers) in enumerate(zip(given[self.query], found, strict=True)):
            row, sentence = (number, answers[0]["item"]) if of_images else (answers[0]["item"], number)
            shown = [{self.item: given[self.item][answer.pop("item")], **answer} for answer in answers]
            entries.append({self.query: query, f"{self.item}s": shown})
            lines += [printable(query), *(_line(answer, self.item) for answer in shown)]
            if asked.draws:
                drawn = attention_strips(loaded.model, pictures, row, asked.sentences[sentence], device)
                drawings[file_name(number, asked.images[row])] = drawn
        return Answer(entries, "\n".join(lines), drawings)


CAPTIONS = Best("captions", query="image", item="sentence")
IMAGES = Best("images", query="sentence", item="image")


def _line(answer: dict[str, Any], key: str) -> str:
    match = "" if answer["match"] is None else f"  match {answer['match']:6.1%}"
    return f"  similarity {answer['similarity']:+.3f}{match}  {printable(answer[key])}"
