"""Running the grid: cells one after another in this process, or training runs handed to a cluster."""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.claim.cell import (
    PREEMPTED,
    SIZES,
    Plan,
    add_record,
    claimed,
    is_done,
    measure_cell,
    plan,
    read_records,
    train_cell,
    trained,
)
from benchmarks.claim.corpora import ROOT, prepare
from benchmarks.claim.grid import core, matching, night
from mvlm import dist
from mvlm.errors import UserError
from mvlm.limits import share_cores
from mvlm.train.memory import keep_freed_memory
from mvlm.train.signals import StopRequests


def run(args: argparse.Namespace) -> int:
    """What `run` was asked for; the exit code.

    Raises:
        UserError: an argument, the data or a configuration will not do.
    """
    stop = StopRequests()
    sources = {name: source for name, _, source in (word.partition("=") for word in args.corpus)}
    cells = matching(core(sources, args.seeds) if args.core else night(sources, args.seeds, args.tune), args.only)
    if not cells:
        raise UserError(f"--only {' '.join(args.only)} is the beginning of no cell's name: see --dry-run without it.")
    size = SIZES[args.size]
    if args.dry_run and args.jobs == "local":
        print("\n".join(cell.name for cell in cells))
        print(f"{len(cells)} cells")
        return 0
    corpora = {name: prepare(name, source, args.folder / "corpora") for name, source in sources.items()}
    extra = tuple(word for word in args.set if not word.startswith("job."))
    plans = (plan(cell, size, corpora[cell.corpus], args.folder, extra) for cell in cells)
    if args.jobs != "local":
        return _submit(plans, args)
    with _one_rank():
        return _one_after_another(plans, args.results, stop, len(cells))


def _one_after_another(plans: Iterator[Plan], results: Path, stop: StopRequests, count: int) -> int:
    for number, planned in enumerate(plans, 1):
        with claimed(planned) as mine:
            if not mine or is_done(planned, read_records(results)):
                continue
            print(f"== {number} of {count}: {planned.cell.name}", flush=True)
            began = time.process_time()
            if train_cell(planned, stop) == PREEMPTED:
                return PREEMPTED
            spent = time.process_time() - began
            add_record(results, measure_cell(planned) | {"training_cpu_s": round(spent, 1)})
            gc.collect()  # an engine is a knot of cycles: the next cell's would come beside it
    return 0


@contextmanager
def _one_rank() -> Iterator[None]:
    """A process group of this process alone, for all cells: DeepSpeed cannot be given a second one."""
    if threads := share_cores(1):
        import torch

        torch.set_num_threads(threads)
    keep_freed_memory()
    dist.init()
    try:
        yield
    finally:
        dist.close()


def _submit(plans: Iterator[Plan], args: argparse.Namespace) -> int:
    """Hand the training of each cell that is not done to `python -m cluster`; `run` without --jobs measures them."""
    if not args.job:
        raise UserError(f"--jobs {args.jobs} needs --job JOB.toml, of `python -m cluster`, such as cluster/slurm.toml.")
    records, waiting = read_records(args.results), 0
    for planned in plans:
        if is_done(planned, records) or trained(planned):
            continue
        name = f"claim-{planned.run.name}"
        words = [word for word in args.set if word.startswith("job.")]
        words += [f"job.name={name}", f"job.run={planned.toml}", f"job.deepspeed={ROOT / planned.size.deepspeed}"]
        words.append(f"job.logs={planned.run.with_suffix('.logs')}")
        verb = "render" if args.dry_run else "submit"
        command = [sys.executable, "-m", "cluster", verb, args.job, "--on", args.jobs, *words, *planned.words]
        if code := subprocess.run(command, cwd=ROOT).returncode:
            return code
        waiting += 1
    done = "would be submitted" if args.dry_run else "submitted"
    print(f"{waiting} training runs {done}; once they have ended, the same command without --jobs measures them.")
    return 0
