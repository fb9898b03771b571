"""Measurements of a trained run, with the score of each test row, so that runs can be compared row by row."""

from __future__ import annotations

import base64
import re
import zlib

import numpy as np
import torch

from benchmarks.claim.corpora import Corpus
from mvlm.data.samples.evaluation import EvalDataset, LabelledEvalDataset
from mvlm.data.samples.foils import FoilDataset
from mvlm.data.samples.labelled import class_names
from mvlm.data.shards.mixture import Mixture
from mvlm.evaluate import ranking, shares
from mvlm.evaluate.accuracy import vqa_accuracy
from mvlm.evaluate.foils import verdicts
from mvlm.evaluate.labelled import evaluate_labelled
from mvlm.evaluate.reconstruction import evaluate_reconstruction
from mvlm.evaluate.retrieval import Direction, SearchSettings, retrieve, summary
from mvlm.evaluate.settings import reading_of
from mvlm.model.finetune import TaskModel
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.runs import Loaded

WORD = re.compile(r"\w+")

LEVELS = 255
"""Steps in which a row's score, from 0 to 1, is kept."""

Measured = tuple[dict[str, float], dict[str, np.ndarray]]
"""Numbers by name, and scores from 0 to 1 by name and test row."""


def measure(loaded: Loaded[MaskVLM], corpus: Corpus, device: torch.device) -> Measured:
    """Every measure that this run's losses allow."""
    objectives, settings = loaded.blueprint.objectives, loaded.eval
    reading = reading_of(loaded)
    held_out = EvalDataset(Mixture([corpus.eval()]), *reading, settings.limit)
    search = SearchSettings(settings.batch, settings.rerank, settings.memory_gb, equal_captions=True)
    numbers: dict[str, float] = {}
    rows: dict[str, np.ndarray] = {}
    if objectives.itc:
        _add(numbers, rows, retrieval(loaded.model, held_out, search, device))
    if corpus.foils and objectives.itc:
        of_foils = FoilDataset(Mixture([str(corpus.foils)], task="foils"), *reading, settings.limit // 2 * 2)
        _add(numbers, rows, foils(loaded.model, of_foils, search, device))
    if objectives.text or objectives.image:
        _add(numbers, rows, restoring(loaded.model, held_out, corpus.words, settings.batch, device))
    return numbers, rows


def measure_answers(loaded: Loaded[TaskModel], corpus: Corpus, device: torch.device) -> Measured:
    """Whether each question is answered right, by a run fine-tuned for questions."""
    mixture = Mixture([corpus.eval("vqa")], task="vqa")
    dataset = LabelledEvalDataset(mixture, "vqa", *reading_of(loaded), loaded.eval.limit)
    classes = class_names("vqa", loaded.tokenizer_folder)
    result, predicted = evaluate_labelled(loaded.model, dataset, classes, loaded.eval.batch, device)
    scores = [vqa_accuracy(answer, row["answers"]) for answer, row in zip(predicted, dataset.values, strict=True)]
    return {"answers": result["accuracy"]}, {"answers": np.array(scores)}


def retrieval(model: MaskVLM, dataset: EvalDataset, search: SearchSettings, device: torch.device) -> Measured:
    """`recall`, the mean of R@1, R@5 and R@10 in both directions, and `r1`, by ITC and, `_reranked`, by ITM.

    Rows are images, scored by the final order: the mean of the image's own score and its captions' mean."""
    found = retrieve(model, dataset, search, device)
    result = summary(found, dataset)
    numbers, rows = {}, {}
    for kind in ("itc", "reranked") if found.search.rerank else ("itc",):
        numbers[f"recall_{kind}"] = result["mean_recall"][kind]
        for direction in ("image_to_text", "text_to_image"):
            numbers[f"r1_{direction}_{kind}"] = result[direction][kind]["r1"]
        rows = {  # of the last kind, which is the final order
            "recall": _by_image(
                dataset, *(_recall(_ranks(side, kind)) for side in (found.image_to_text, found.text_to_image))
            ),
            "r1": _by_image(dataset, *(_ranks(side, kind) < 1 for side in (found.image_to_text, found.text_to_image))),
        }
    return numbers | {name: float(scores.mean()) for name, scores in rows.items()}, rows


def foils(model: MaskVLM, dataset: FoilDataset, search: SearchSettings, device: torch.device) -> Measured:
    """Whether the true sentence scores above its foil (a tie counts half), by ITC and ITM; rows have ITM's verdict if
    there is one. `foils_words` is by reconstructing the exchanged words, if the model was trained to.

    Rows come in pairs that share their sentences: the mean of a pair is one test row."""
    right = verdicts(model, dataset, search, device)
    if model.objectives.text:
        with shares.inference(model):
            score_N2 = _swapped_words(model, dataset, search.batch, device)
        right["words"] = np.heaviside(score_N2[:, 0] - score_N2[:, 1], 0.5)
    final = right.get("itm", right["itc"])
    numbers = {f"foils_{scorer}": float(right_N.mean()) for scorer, right_N in right.items()}
    return numbers | {"foils": float(final.mean())}, {"foils": final.reshape(-1, 2).mean(1)}


def _swapped_words(model: MaskVLM, dataset: FoilDataset, batch: int, device: torch.device) -> np.ndarray:
    """[N, 2] log-likelihood, given the image, of the words in which a row's two sentences differ, all hidden at once.

    Hidden one at a time, the words still there would give them away: of the image's colours, the one not yet named.
    """
    sums = np.zeros(len(dataset.captions))
    for first in range(0, len(sums), batch):
        sentences = range(first, min(first + batch, len(sums)))
        text_BL, valid_BL = (t.to(device) for t in dataset.texts(list(sentences)))
        hidden_BL = torch.zeros_like(valid_BL)
        for row, sentence in enumerate(sentences):
            hidden_BL[row, _differing(dataset, sentence)] = True
        image_BSD = model.encode_image(dataset.images([sentence // 2 for sentence in sentences]).to(device))
        masked_BLD = model.encode_text(text_BL.masked_fill(hidden_BL, dataset.tokens.mask_id), valid_BL)
        logits_MV = model.reconstruct_text(model.fuse_text(masked_BLD, image_BSD, valid_BL)[hidden_BL]).float()
        found_M = logits_MV.log_softmax(-1).gather(1, text_BL[hidden_BL][:, None])[:, 0].double()
        row_M = hidden_BL.nonzero()[:, 0]
        of_batch = torch.zeros(len(sentences), dtype=torch.float64, device=device).index_add_(0, row_M, found_M)
        sums[list(sentences)] = of_batch.cpu().numpy()
    return sums.reshape(-1, 2)


def _differing(dataset: FoilDataset, index: int) -> list[int]:
    """The tokens in words of a sentence that differ from the row's other sentence at the same place."""
    sentence, other = dataset.captions[index], dataset.captions[index ^ 1]
    words, others = list(WORD.finditer(sentence)), WORD.findall(other)
    differing = [word for word, its in zip(words, others, strict=True) if word.group() != its]
    return [
        place
        for place, (first, last) in enumerate(dataset.tokens.spans(sentence))
        if any(first < word.end() and word.start() < last for word in differing)
    ]


def restoring(
    model: MaskVLM, dataset: EvalDataset, words: tuple[str, ...], batch: int, device: torch.device
) -> Measured:
    """Hidden words and pixels with the right other modality, none and a wrong one, for the losses that were trained."""
    result = evaluate_reconstruction(model, dataset, batch, device, words)
    numbers = {}
    if model.objectives.text:
        numbers |= {
            f"words_{condition}": result["word_accuracy"][condition] for condition in ("right", "none", "wrong")
        }
        numbers["words"] = numbers["words_right"]
    if model.objectives.image:
        numbers |= {f"pixels_{condition}": value for condition, value in result["pixel_l1"].items()}
    return numbers, {}


def pack(score_N: np.ndarray) -> str:
    """Scores from 0 to 1 as text, to within half a step of LEVELS."""
    return base64.b85encode(zlib.compress(np.rint(score_N * LEVELS).astype(np.uint8).tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    """float64 [N]."""
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), dtype=np.uint8) / LEVELS


def _ranks(direction: Direction, kind: str) -> np.ndarray:
    return getattr(direction, f"{kind}_A")


def _recall(rank_A: np.ndarray) -> np.ndarray:
    """The mean of a query's R@1, R@5 and R@10."""
    return np.mean([rank_A < k for k in ranking.RECALLS], axis=0)


def _by_image(dataset: EvalDataset, of_image: np.ndarray, of_caption: np.ndarray) -> np.ndarray:
    captions = np.bincount(dataset.owner, minlength=len(dataset))
    return (of_image + np.bincount(dataset.owner, of_caption, len(dataset)) / captions) / 2


def _add(numbers: dict[str, float], rows: dict[str, np.ndarray], measured: Measured) -> None:
    numbers |= measured[0]
    rows |= measured[1]
