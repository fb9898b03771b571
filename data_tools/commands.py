"""What each command does between its arguments and what it prints."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_tools.corpora import batches, corpora
from data_tools.progress import progress
from data_tools.readers import SOURCES
from data_tools.shard import Options, Yield
from data_tools.shard import shard as shard_records
from data_tools.split import parse_split
from data_tools.stats import corpus_stats, table
from data_tools.synth import TASKS
from data_tools.verify import problems
from data_tools.writer import write_text, writing
from mvlm.data.schema import read_manifest
from mvlm.errors import UserError

SOURCE_NAMES = tuple(SOURCES)
TASK_NAMES = tuple(TASKS)


def shard_source(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    source = SOURCES[arguments.source](arguments.paths)
    with progress("sharding", source.size, lambda: source.position) as advance:
        return _report(shard_records(source, arguments.out, options, advance))


def synth(arguments: argparse.Namespace) -> int:
    records = TASKS[arguments.task](arguments.count, arguments.seed)
    drawn = _Count()
    with progress("drawing", arguments.count, lambda: drawn.value) as advance:
        return _report(shard_records(records, arguments.out, _options(arguments), drawn.then(advance)))


def _options(arguments: argparse.Namespace) -> Options:
    split = parse_split(arguments.split, arguments.split_by) if arguments.split else None
    return Options(split, max(1, int(arguments.shard_mb * 1e6)), arguments.workers, arguments.tolerate)


def _report(counts: Yield) -> int:
    print(counts.summary())
    return 0


def verify(arguments: argparse.Namespace) -> int:
    sound = [_verify_corpus(folder, arguments.workers) for folder in corpora(arguments.shards)]
    return 0 if all(sound) else 1


def _verify_corpus(folder: Path, workers: int) -> bool:
    manifest = read_manifest(folder)
    rows, found = _Count(), 0
    with progress(f"verifying {folder.name}", manifest.rows, lambda: rows.value) as advance:
        for problem in problems(folder, workers, rows.then(advance)):
            found += 1
            print(problem, file=sys.stderr)
    outcome = f"{found:,} problems" if found else "sound"
    print(f"{folder}: {manifest.rows:,} rows in {len(manifest.shards):,} shards, {outcome}")
    return not found


def stats(arguments: argparse.Namespace) -> int:
    found = {folder: corpus_stats(folder) for folder in corpora(arguments.shards)}
    if arguments.json:
        only = next(iter(found.values()))
        print(json.dumps(only if len(found) == 1 else {folder.name: s for folder, s in found.items()}, indent=1))
    else:
        print("\n\n".join(f"{folder}: {table(s)}" for folder, s in found.items()))
    return 0


def tokenizer(arguments: argparse.Namespace) -> int:
    from mvlm.data.tokenizer import train_tokenizer  # seconds to import, and no other command needs it

    if arguments.out.exists():
        raise UserError(f"{arguments.out} exists already: delete it or give another --out.")
    trained = train_tokenizer(_captions(arguments.shards), arguments.vocab)
    with writing(arguments.out):
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.out, trained.backend_tokenizer.to_str(pretty=True) + "\n")
    print(f"{arguments.out}: {len(trained):,} tokens")
    return 0


def _captions(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        for folder in corpora(path):
            for batch in batches(folder, read_manifest(folder)):
                yield from batch["captions"].flatten().to_pylist()


@dataclass
class _Count:
    """Records done, for a progress bar whose total is a number of records."""

    value: int = 0

    def then(self, advance: Callable[[int], None]) -> Callable[[int], None]:
        def counted(image_bytes: int) -> None:
            self.value += 1
            advance(image_bytes)

        return counted
