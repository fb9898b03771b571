"""Score every row of a corpus with a trained model, for `data.where` to select by.

Each row gets, as the mean over its captions: itc_similarity, the cosine of ITC's features; itm_probability, ITM's
probability of a match; text_loss and image_loss, the losses of reconstructing masked tokens and masked patches from the
other modality; and caption_words. With py3langid there is a column language too. The image's ITC features are stored
separately, as its embedding. If it is killed, run the same command again: scored shards are kept. Several
processes share the work with --part, and under a launcher the ranks do; the last one names the tables in the manifest.

With --clusters, the rows of all SHARDS are then grouped by k-means on their embeddings; a command with --part does not,
so finish with one without it. With the columns cluster and cluster_rank, a condition can cap a cluster's rows, as
MetaCLIP does, and with duplicate_similarity drop near-duplicates, as SemDeDup does.

examples:
  mvlm score shards/noisy --checkpoint runs/scorer
  mvlm score s3://bucket/noisy --checkpoint runs/scorer --part $SLURM_ARRAY_TASK_ID/16
  mvlm score shards/noisy --checkpoint runs/scorer --clusters 1000
  torchrun --nproc-per-node 8 -m mvlm score shards/noisy --checkpoint runs/scorer
  mvlm train run.toml --deepspeed_config ds_configs/zero1.json data.train=shards/noisy \\
      "data.where=itm_probability > 0.5 and duplicate_similarity < 0.95"
"""

from __future__ import annotations

import argparse
from functools import partial

from mvlm.checkpoint.layout import find_checkpoint
from mvlm.cli.places import require_shards
from mvlm.config.places import require_each_once
from mvlm.runtime.arguments import above_zero, positive
from mvlm.runtime.launch import environment
from mvlm.runtime.log import log
from mvlm.runtime.wording import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="folders of shards of captions, or URLs")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run folder, or one of its checkpoints")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="score every N-th shard from the I-th on")
    parser.add_argument(
        "--batch", type=positive, metavar="ROWS", help="rows per forward pass (default: the run's eval.batch)"
    )
    parser.add_argument("--clusters", type=positive, metavar="K", help="afterwards, group the rows into K clusters")
    parser.add_argument(
        "--memory-gb", type=above_zero, default=4.0, metavar="GB", help="memory for embeddings of clusters (default: 4)"
    )


def run(args: argparse.Namespace) -> int:
    """Score; returns the exit code.

    Raises:
        UserError: the checkpoint or the shards cannot be used, or the tables cannot be written.
    """
    find_checkpoint(args.checkpoint)  # before imports that take seconds
    require_shards(args.shards)
    require_each_once(args.shards)

    from mvlm.data.shards.cache import Cache
    from mvlm.evaluate.cluster_corpus import cluster_corpora
    from mvlm.evaluate.language import NO_LANGUAGE
    from mvlm.evaluate.score_corpus import parse_part, score_part
    from mvlm.evaluate.scores import Scorer
    from mvlm.pretrained.runs import load_run
    from mvlm.runtime import dist

    part, parts = parse_part(args.part)
    if environment()["world"] > 1:
        dist.init()
    try:
        device, rank, world = dist.device(), dist.rank(), dist.world()
        loaded = load_run(args.checkpoint, device)
        scorer = Scorer(loaded, args.batch or loaded.eval.batch, device)
        if not scorer.finds_language:
            log.warning(NO_LANGUAGE)
        data = loaded.data
        score = partial(score_part, scorer, part=part * world + rank, parts=parts * world)
        for folder in args.shards:
            found = dist.on_all(partial(score, folder, cache=Cache(data.cache, data.cache_gb)))
            missing, shards = min(found)  # the rank that finished last has seen all the others' work
            rest = (
                f"{missing:,} of them are still to be scored by other parts"
                if missing
                else "data.where reads the scores"
            )
            if rank == 0:
                print(f"{folder}: {counted(shards, 'shard')} scored with the weights of step {loaded.step}; {rest}.")
    finally:
        dist.close()  # the other ranks need not wait for the clustering
    if args.clusters and parts == 1 and rank == 0:
        cluster_corpora(args.shards, args.clusters, args.memory_gb, device, cache=Cache(data.cache, data.cache_gb))
        print(f"The rows are in {args.clusters:,} clusters.")
    return 0
