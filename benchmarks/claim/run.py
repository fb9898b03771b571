"""Running the grid: cells one after another in this process, or training runs handed to a cluster."""

from __future__ import annotations

import argparse
import fcntl
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.claim.cell import (
    SIZES,
    Plan,
    claimed,
    is_done,
    measure_cell,
    plan,
    train_cell,
)
from benchmarks.claim.corpora import Corpus, prepare
from benchmarks.claim.grid import core, matching, night
from benchmarks.claim.jobs import is_under_way, submit
from benchmarks.claim.table import into_page
from benchmarks.kept import add_record, read_records
from mvlm.errors import ExitCode, UserError
from mvlm.runtime import dist
from mvlm.runtime.cpu import keep_freed_memory, share_cores
from mvlm.training.health.signals import StopRequests


def run(args: argparse.Namespace) -> int:
    """Do what `run` was asked for; returns the exit code.

    Raises:
        UserError: an argument, the data or a configuration is wrong.
        JobError: a job is wrong, or its cluster does not answer.
    """
    sources = {name: source for name, _, source in (word.partition("=") for word in args.corpus)}
    cells = matching(core(sources, args.seeds) if args.core else night(sources, args.seeds, args.tune), args.only)
    if not cells:
        raise UserError(f"No cell's name begins with --only {' '.join(args.only)}: --dry-run without it lists them.")
    size = SIZES[args.size]
    if args.dry_run and args.jobs == "local":
        print("\n".join(cell.name for cell in cells))
        print(f"{len(cells)} cells")
        return 0
    corpora = prepare_all(sources, args.folder)
    extra = tuple(word for word in args.set if not word.startswith("job."))
    plans = (plan(cell, size, corpora[cell.corpus], args.folder, extra) for cell in cells)
    if args.jobs != "local":
        return submit(plans, args)
    return run_here(plans, args.results, len(cells))


def prepare_all(sources: dict[str, str], folder: Path) -> dict[str, Corpus]:
    """Prepare the corpora in one process at a time: others started with it wait and find them made."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "corpora.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return {name: prepare(name, source, folder / "corpora") for name, source in sources.items()}


def run_here(plans: Iterable[Plan], results: Path, count: int) -> int:
    """Train and measure in this process whatever `results` does not hold yet; returns the exit code."""
    stop = StopRequests()  # before there are ranks: the shell that started this may end
    with one_rank():
        return _one_after_another(plans, results, stop, count)


def run_and_report(campaign: Callable[[], tuple[int, str]], page: Path | None) -> int:
    """Run a campaign, print the tables it returns and write them into a page. Returns the campaign's exit code, 1 after
    a user's mistake, or 130 after an interrupt."""
    try:
        code, text = campaign()
        print(text)
        if page:
            page.write_text(into_page(page.read_text(encoding="utf-8"), text), encoding="utf-8")
    except UserError as error:
        print(error, file=sys.stderr)
        return ExitCode.MISTAKE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code


def _one_after_another(plans: Iterable[Plan], results: Path, stop: StopRequests, count: int) -> int:
    for number, planned in enumerate(plans, 1):
        with claimed(planned.run) as mine:
            if not mine or is_done(planned, read_records(results)):
                continue
            if is_under_way(planned):
                print(f"{planned.cell.name} waits or runs on a cluster: left to it", flush=True)
                continue
            print(f"== {number} of {count}: {planned.cell.name}", flush=True)
            begins, began = not planned.run.exists(), time.process_time()
            if train_cell(planned, stop) == ExitCode.REQUEUE:
                return ExitCode.REQUEUE
            whole = {"training_cpu_s": round(time.process_time() - began, 1)} if begins else {}
            add_record(results, measure_cell(planned) | whole)
            gc.collect()  # an engine is full of reference cycles: the next cell's would be built beside it
    return 0


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone, for all cells: DeepSpeed does not accept a second one."""
    if threads := share_cores(1):
        import torch

        torch.set_num_threads(threads)
    keep_freed_memory()
    dist.init()
    try:
        yield
    finally:
        dist.close()
