"""Retrieval on the held-out shards while a run trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mvlm import dist
from mvlm.config import Config
from mvlm.data.dataset import EvalDataset
from mvlm.data.index import held_out
from mvlm.data.tokenizer import load_tokenizer
from mvlm.evaluate.retrieval import evaluate_retrieval
from mvlm.model.maskvlm import MaskVLM


def evaluator(config: Config, run: Path) -> Callable[[MaskVLM, Path, int], dict[str, float]]:
    """What the training loop calls on every rank with (model, run folder, step): recalls as flat metrics.

    Named `eval/<direction>_<r1|r5|r10>` after ITC and `eval/<direction>_reranked_<...>` after ITM.

    Raises:
        UserError: at once, if `data.eval` cannot be opened.
    """
    mixture = held_out(config.data)
    opened: list[EvalDataset] = []  # the run's tokenizer is not there before training begins

    def evaluate(model: MaskVLM, folder: Path, step: int) -> dict[str, float]:
        if not opened:
            opened.append(EvalDataset(mixture, load_tokenizer(str(run / "tokenizer")), config, config.eval.limit))
        result = evaluate_retrieval(model, opened[0], config.eval.batch, config.eval.rerank, dist.device())
        metrics: dict[str, float] = {}
        for direction in ("image_to_text", "text_to_image"):
            for ranked_by, name in (("itc", direction), ("reranked", f"{direction}_reranked")):
                recalls = result[direction][ranked_by] or {}
                metrics |= {f"eval/{name}_{key}": share for key, share in recalls.items()}
        return metrics

    return evaluate
