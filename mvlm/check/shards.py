"""Checks the shards that a run names: manifests, tasks, lengths, columns and, with `deep`, hashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mvlm.check.report import Report
from mvlm.checkpoint.state import OrderSpec
from mvlm.config.load import require_training_data
from mvlm.config.schema import Config
from mvlm.data.loading.neighbours import neighbours
from mvlm.data.loading.sampler import make_sampler, order_of, reason_for_blocks, settle_shuffle
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.columns import open_shard
from mvlm.data.shards.corpus import check_task
from mvlm.data.shards.files import Shard
from mvlm.data.shards.indexed import located
from mvlm.data.shards.integrity import check_hash, check_index_hash, check_index_length, check_length
from mvlm.data.shards.location import RemoteShards
from mvlm.data.shards.mapped import MappedFile
from mvlm.data.shards.mixture import Mixture, held_out, kept_sentences, training_mixture
from mvlm.data.shards.schema import Manifest, read_manifest
from mvlm.errors import Mistakes, UserError
from mvlm.runtime.wording import counted


def check_training(report: Report, config: Config, toml: str, deep: bool) -> Mixture | None:
    """Check `data.train`, and return the mixture that training would draw from; None if it cannot be opened."""
    with report.judged("data"):
        require_training_data(config, toml)
    for folder in config.data.train:
        check_corpus(report, config, folder, deep)
    if not config.data.train:
        return None
    try:
        mixture = training_mixture(config.data, config.task.corpus)
        make_sampler(mixture, config.run.seed, [order_of(config.data)])
    except UserError as error:
        report.wrong("data", *error.sentences)
        return None
    drawn = f"{sum(mixture.numbers.sizes):,} {'pairs' if mixture.numbers.pairs else 'rows'}"
    for sentence in kept_sentences(mixture):
        report.right("data", sentence)
    report.right("data", f"An epoch draws {mixture.per_epoch:,} of {drawn}.")
    return mixture


def check_shuffle(report: Report, config: Config, mixture: Mixture) -> Config:
    """The configuration of a new run, with `data.shuffle` settled for this machine."""
    data, sentence = settle_shuffle(config.data, [reason_for_blocks(config.data)])
    if sentence:
        report.right("data", sentence)
    report_neighbours(report, mixture, config, [order_of(data)])
    return replace(config, data=data)


def report_neighbours(report: Report, mixture: Mixture, config: Config, orders: Sequence[OrderSpec]) -> None:
    """Report how many rows of a batch were neighbours in their source, for each order from here on."""
    with report.judged("data"):
        for order in orders:
            report.right("data", str(neighbours(mixture, config.run.seed, order, config.train.global_batch)))


def check_evaluation(report: Report, config: Config, deep: bool) -> None:
    """Check `data.eval`, which a run need not have."""
    for folder in config.data.eval:
        check_corpus(report, config, folder, deep)
    if config.data.eval:
        with report.judged("data"):
            held_out(config.data, config.task.corpus)
    else:
        report.right("data", "No data.eval is named: the run evaluates nothing.")


def check_corpus(report: Report, config: Config, folder: str, deep: bool) -> None:
    """Check one folder or URL of shards for the run's task."""
    mistakes = Mistakes()
    cache = Cache(config.data.cache, config.data.cache_gb)
    with report.judged("data"):
        if "://" in folder:
            manifest, how = _check_remote(RemoteShards(folder, cache), config.task.corpus, deep, mistakes)
        else:
            manifest, how = _check_folder(Path(folder), config.task.corpus, deep, mistakes)
        report.wrong("data", *mistakes.sentences)
        if not mistakes.sentences:
            count = len(manifest.shards)
            held = f"{counted(manifest.rows, 'row')} of {manifest.task} in {counted(count, 'shard')}"
            report.right("data", f"{folder} holds {held}: {how}.")
            if without := manifest.shards.unindexed:
                report.unknown(
                    "data",
                    f"{folder}: the texts of {without:,} of {count:,} shards are not checked as they are read, since "
                    f"these have no row index: add it with `mvlm-data row-index`, which changes no run.",
                )


def _check_folder(folder: Path, task: str, deep: bool, mistakes: Mistakes) -> tuple[Manifest, str]:
    folder = located(folder)
    manifest = read_manifest(folder)
    with mistakes.gathered():
        check_task(folder, manifest, task)
    for sentence in shard_problems(folder, manifest, deep):
        mistakes.add(sentence)
    return manifest, "lengths, columns and hashes right" if deep else "lengths and columns right (hashes: --deep)"


def shard_problems(folder: Path, manifest: Manifest, deep: bool) -> list[str]:
    """A sentence for each shard that differs from the manifest; `deep` reads them in full, for their hashes."""
    mistakes = Mistakes()
    for shard in manifest.shards:
        with mistakes.gathered():
            _check_shard(folder, shard, manifest.task, deep)
    return mistakes.sentences


def _check_shard(folder: Path, shard: Shard, task: str, deep: bool) -> None:
    check_length(folder, shard)
    path = folder / shard.file
    try:
        if deep:
            check_hash(folder, shard)
        file = MappedFile(path)
        open_shard(file, None, shard, str(path), task, folder)
        if index := shard.index:
            (check_index_hash if deep else check_index_length)(folder, index)
            open_shard(file, MappedFile(folder / index.file), shard, str(path), task, folder)
        for table in shard.files[len(shard.trained_on) :]:
            (check_hash if deep else check_length)(folder, table)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy or shard it again.") from None


def _check_remote(location: RemoteShards, task: str, deep: bool, mistakes: Mistakes) -> tuple[Manifest, str]:
    with mistakes.gathered():
        check_task(location.url, location.manifest, task)
    if deep:
        for number in range(len(location.manifest.shards)):
            with mistakes.gathered():
                location.fetch(number)
    return location.manifest, "all fetched and their hashes right" if deep else "hashes are checked when fetched"
