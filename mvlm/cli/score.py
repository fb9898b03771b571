"""Score every row of a corpus with a trained model, for `data.where` to select by.

Each row gets, as the mean over its captions: itc_similarity, the cosine of ITC's features; itm_probability, ITM's
probability of a match; text_loss and image_loss, the losses of reconstructing masked tokens and masked patches from the
other modality; and caption_words. With py3langid there is a column language, too. The image's ITC features are kept
apart, as its embedding. Run the same command again after a kill: shards that are scored stay. Several processes share
the work with --part; the last one names the tables in the manifest.

examples:
  mvlm score shards/noisy --checkpoint runs/scorer
  mvlm score s3://bucket/noisy --checkpoint runs/scorer --part $SLURM_ARRAY_TASK_ID/16
  mvlm train run.toml data.train=shards/noisy "data.where=itm_probability > 0.5"
"""

from __future__ import annotations

import argparse

from mvlm.checkpoint.layout import find_checkpoint
from mvlm.cli.places import require_shards
from mvlm.runtime.arguments import positive
from mvlm.runtime.log import rank_log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="folders of shards of captions, or URLs")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run folder, or one of its checkpoints")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="score every N-th shard from the I-th on")
    parser.add_argument(
        "--batch", type=positive, metavar="ROWS", help="in a forward pass (default: the run's eval.batch)"
    )


def run(args: argparse.Namespace) -> int:
    """Score; returns the exit code.

    Raises:
        UserError: the checkpoint or the shards cannot be used, or the tables cannot be written.
    """
    find_checkpoint(args.checkpoint)  # before imports that take seconds
    require_shards(args.shards)

    from mvlm.data.shards.cache import Cache
    from mvlm.evaluate.language import NO_LANGUAGE
    from mvlm.evaluate.score_corpus import parse_part, score_part
    from mvlm.evaluate.scores import Scorer
    from mvlm.pretrained.runs import load_run
    from mvlm.runtime import dist

    part, parts = parse_part(args.part)
    device = dist.device()
    loaded = load_run(args.checkpoint, device)
    scorer = Scorer(loaded, args.batch or loaded.config.eval.batch, device)
    if not scorer.finds_language:
        rank_log.warning(NO_LANGUAGE)
    data = loaded.config.data
    for folder in args.shards:
        cache = Cache(data.cache, data.cache_gb)
        missing, shards = score_part(scorer, folder, part, parts, cache=cache)
        wait = (
            f"{missing:,} of them are still to be scored by other parts" if missing else "data.where reads the scores"
        )
        print(f"{folder}: {shards:,} shards by the weights of step {loaded.step}; {wait}.")
    return 0
