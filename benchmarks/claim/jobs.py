"""The grid's training runs as jobs of `python -m cluster`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.claim.cell import ROOT, Plan, is_done, trained
from benchmarks.kept import read_records
from cluster.__main__ import BACKENDS
from cluster.job import load_job
from cluster.record import RECORD, read_record
from mvlm.errors import UserError

TRAINED = "trained"
UNDER_WAY = "waiting or running already"
TOO_EARLY = "left until their pretraining has ended"


def submit(plans: Iterator[Plan], args: argparse.Namespace) -> int:
    """Submit the training of each cell that is neither trained nor under way; with --dry-run, print the jobs instead.

    Raises:
        UserError: no job file is given.
        UserError: the job's settings are wrong, or the cluster does not answer.
    """
    if not args.job:
        raise UserError(f"--jobs {args.jobs} needs --job JOB.toml for `python -m cluster`, such as cluster/slurm.toml.")
    backend, own = BACKENDS[args.jobs], [word for word in args.set if word.startswith("job.")]
    done = "would be submitted" if args.dry_run else "submitted"
    records, fates = read_records(args.results), Counter[str]()
    for planned in plans:
        fate = TRAINED if is_done(planned, records) or trained(planned) else _obstacle(planned)
        if not fate:
            job = load_job(args.job, [*own, *_words(planned)])
            if args.dry_run:
                print(backend.render(job, planned.words))
            else:
                backend.submit(job, planned.words)
        fates[fate or done] += 1
    told = ", ".join(f"{count} {fate}" for fate, count in fates.items())
    print(f"Training runs: {told}. The same command submits what is left; without --jobs it measures what is trained.")
    return 0


def is_under_way(planned: Plan) -> bool:
    """Whether a job of the cell, or of the cell it fine-tunes, waits or runs on a cluster.

    Raises:
        UserError: that cluster does not answer.
    """
    if planned.base and is_under_way(planned.base):
        return True
    logs = _logs(planned)
    if trained(planned) or not (logs / RECORD).exists():
        return False
    return BACKENDS[read_record(logs).backend].status(logs).active


def _obstacle(planned: Plan) -> str:
    """Why a cell is not submitted now; "" if nothing stands in the way."""
    if planned.base and not trained(planned.base):
        return TOO_EARLY
    return UNDER_WAY if is_under_way(planned) else ""


def _words(planned: Plan) -> list[str]:
    return [
        f"job.name=claim-{planned.run.name}",
        f"job.run={planned.toml}",
        f"job.deepspeed={ROOT / planned.size.deepspeed}",
        f"job.logs={_logs(planned)}",
    ]


def _logs(planned: Plan) -> Path:
    return planned.beside(".logs")
