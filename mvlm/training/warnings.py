"""What a configuration may ask for but hardly means to: reported by check and when a run begins, not refused."""

from __future__ import annotations

from mvlm.config.schema import Data, Eval, Objectives, Task
from mvlm.data.shards.mixture import Mixture, held_out
from mvlm.runtime.wording import counted
from mvlm.training.schedule import LearningRate
from mvlm.training.span import span_shape

UNCOUNTED = "40 to 70 % more computing (`mvlm plan` counts it)"
"""The range over the recipes, depending on how much they reconstruct."""


def find_warnings(
    data: Data, task: Task, evaluation: Eval, mixture: Mixture, global_batch: int, steps: int, rate: LearningRate
) -> list[tuple[str, str]]:
    """Topics of check, each with a sentence.

    Args:
        mixture: of data.train.
        steps: in all.
        rate: the learning rate, of which a run with stages has several.

    Raises:
        UserError: data.eval cannot be opened.
    """
    found = [("data", sentence) for sentence in _seen_rows(data, task, mixture)]
    if global_batch > (rows := mixture.per_epoch):
        sentence = (
            f"train.global_batch {global_batch:,} is more than the {counted(rows, 'row')} of an epoch: each step sees "
            f"every row {global_batch / rows:.3g} times before it learns from any; lower it."
        )
        found.append(("data", sentence))
    found += [("optim", sentence) for sentence in _short_schedule(rate, steps)]
    every = evaluation.every
    if every and not data.eval:
        sentence = f"eval.every is {every:,} and no data.eval is named: nothing is evaluated; name held-out shards."
        found.append(("eval", sentence))
    elif every > steps:
        sentence = f"eval.every is {every:,} and the run has {counted(steps, 'step')}: it is evaluated only"
        found.append(("eval", f"{sentence} after the last; lower it."))
    return found


def _short_schedule(rate: LearningRate, steps: int) -> list[str]:
    """A warning if the warm-up leaves too few of so many steps for what comes after it."""
    lower = "lower optim.warmup_epochs, or optim.warmup_steps if that is set."
    if rate.total > 2 and rate.warmup >= rate.total - 1:
        whole = f"{rate.total:,} steps of the {'run' if rate.total == steps else 'schedule'}"
        return [f"The warm-up takes all {whole}, whose learning rate only rises: {lower}"]
    if rate.kind == "wsd" and rate.decay > (left := rate.total - rate.warmup):
        return [f"The warm-up leaves {left:,} of the {rate.decay:,} steps in which optim.decay_steps decays: {lower}"]
    return []


def _seen_rows(data: Data, task: Task, mixture: Mixture) -> list[str]:
    """Warnings of held-out shards that are trained on, wherever copies lie and whatever they were merged with."""
    if not data.eval:
        return []
    trained = {shard.hash: corpus.folder for corpus in mixture.corpora for shard in corpus.manifest.shards}
    found = []
    for corpus in held_out(data, task.corpus).corpora:
        seen = [shard for shard in corpus.manifest.shards if shard.hash in trained]
        if seen:
            rows = sum(shard.rows for shard in seen)
            found.append(
                f"data.eval's {corpus.folder} has {rows:,} of its {corpus.manifest.rows:,} rows from data.train's "
                f"{trained[seen[0].hash]}: its scores tell how well they are memorised, not what was learned; name "
                "shards that are held out."
            )
    return found


def groups_warning(objectives: Objectives, global_batch: int, ranks: int, pairs: int, cost: str = UNCOUNTED) -> str:
    """What it costs if ITM's groups span micro-batches that are computed one after another; "" if they do not.

    Args:
        pairs: of a micro-batch.
    """
    group, at_once = objectives.group(global_batch), ranks * pairs
    if not objectives.itm or span_shape(group, ranks, pairs)[1] == 1:
        return ""
    divisor = next((size for size in range(min(group, at_once), 1, -1) if at_once % size == 0), 0)
    smaller = f", or set objectives.itm_group = {divisor}, with weaker negatives" if divisor else ""
    return (
        f"ITM's groups of {group} do not fit in the {at_once} pairs computed at once and cost {cost}: "
        f"raise train.micro_batch{smaller}."
    )
