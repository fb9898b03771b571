"""What a configuration may ask for and hardly means: told by check and when a run begins, and not refused."""

from __future__ import annotations

from typing import Any

from mvlm.config.schema import Config
from mvlm.data.shards.corpus import Mixture, held_out
from mvlm.training.zero.json_file import unused


def doubts(
    config: Config, content: dict[str, Any] | None, json_name: str, mixture: Mixture, total: int
) -> list[tuple[str, str]]:
    """Topics of check, each with a sentence.

    Args:
        content: of the DeepSpeed JSON, None = not given.
        total: updates in all.

    Raises:
        UserError: data.eval cannot be opened.
    """
    found = [("deepspeed", sentence) for sentence in unused(content or {}, json_name)]
    found += [("data", sentence) for sentence in (*_seen_rows(config, mixture), *_repeated_rows(config, mixture))]
    found += [("eval", sentence) for sentence in _missed_evaluations(config, total)]
    return found


def _seen_rows(config: Config, mixture: Mixture) -> list[str]:
    """Held-out corpora that are trained on, wherever their copies lie."""
    if not config.data.eval:
        return []
    trained = {corpus.manifest.fingerprint: corpus.folder for corpus in mixture.corpora}
    return [
        f"data.eval's {corpus.folder} holds the rows of data.train's {trained[corpus.manifest.fingerprint]}: its "
        "scores tell how well they are remembered and not what was learned; name shards that are held out."
        for corpus in held_out(config.data, config.task.corpus).corpora
        if corpus.manifest.fingerprint in trained
    ]


def _repeated_rows(config: Config, mixture: Mixture) -> list[str]:
    batch, rows = config.train.global_batch, mixture.per_epoch
    if batch <= rows:
        return []
    return [
        f"train.global_batch {batch:,} is more than the {rows:,} rows of an epoch: each step sees every row "
        f"{batch / rows:.3g} times before it learns from any; lower it."
    ]


def _missed_evaluations(config: Config, total: int) -> list[str]:
    every = config.eval.every
    if every and not config.data.eval:
        return [f"eval.every is {every:,} and no data.eval is named: nothing is evaluated; name held-out shards."]
    if every > total:
        return [
            f"eval.every is {every:,} and the run has {total:,} steps: it is evaluated after the last alone; lower it."
        ]
    return []
