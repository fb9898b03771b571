"""How often each stage of a run has seen each row: `stages.jsonl` in the run folder, and counting by it.

Rows are not listed. A stage's line gives the range that it has drawn of each data set's order, which is a function of
the seed, so that the counts of all rows follow exactly. The file is rewritten with each checkpoint, from its state, so
that no kill or roll-back makes it wrong. Damaged rows, which are replaced by others, are listed in quarantine.jsonl.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from glob import iglob
from pathlib import Path
from typing import Any

import numpy as np

from mvlm.checkpoint.description import CONFIG, LEDGER, STAGES, described_in
from mvlm.checkpoint.integrity import read_state
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.checkpoint.state import DataStream, TrainState
from mvlm.config.load import load_stored_config
from mvlm.config.schema import Data
from mvlm.config.stages import load_stored_stages
from mvlm.data.loading.sampler import make_sampler
from mvlm.data.loading.streams import positions_of, remembered, taken, takes_turns
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.corpus import Corpus
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from mvlm.runtime.storage import write_durably

AT_ONCE = 1 << 20
"""Draws that are counted together."""


def write_ledger(run: Path, state: TrainState) -> None:
    """Write it if the run has stages; raises OSError if that fails."""
    if state.stages:
        write_durably(run / LEDGER, "".join(json.dumps(line) + "\n" for line in ledger(state)))


def ledger(state: TrainState) -> list[dict[str, Any]]:
    """A line for each stage that has begun, with what it has drawn from each data set, or from several in one order."""
    lines, streams = [], remembered(state) if state.stages else ()
    for number, stage in enumerate(state.stages):
        if number + 1 == len(state.stages):
            step, samples = state.step, state.samples_seen
        else:
            following = state.stages[number + 1]
            step, samples = following.step, following.samples
        ends = stage.ends or positions_of(state)
        skipped = [at for at in state.skipped if stage.samples <= at < samples]
        lines.append(
            {
                "stage": stage.number + 1,
                "name": stage.name,
                "steps": [stage.step, step],
                "samples": [stage.samples, samples],
                "global_batch": stage.global_batch,
                **({"earlier_batches": [list(each) for each in stage.earlier]} if stage.earlier else {}),
                "skipped": skipped,
                "drawn": [
                    {
                        "data": list(streams[stream].data),
                        "of": "pairs" if streams[stream].pairs else "rows",
                        "per_epoch": streams[stream].per_epoch,
                        "from": begin,
                        "to": end,
                        "order": order_hash(streams[stream], stream, state.seed),
                    }
                    for stream, begin, end in zip(stage.streams, stage.begins, ends, strict=True)
                ],
            }
        )
    return lines


def order_hash(stream: DataStream, number: int, seed: int) -> str:
    """Equal if a stream is drawn in the same order from the same rows."""
    content = {"seed": seed + number, "order": [asdict(order) for order in stream.order]}
    content |= {"fingerprint": stream.fingerprint, "pairs": stream.pairs, "per_epoch": stream.per_epoch}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def count_seen(run: str | Path, places: Sequence[str] = ()) -> list[list[tuple[tuple[str, ...], np.ndarray]]]:
    """For each stage that has begun, and each data set that it has drawn from, how often each row was seen.

    If an epoch draws pairs, it is each pair. Batches that were left out are not counted.

    Args:
        run: a run folder, whose latest checkpoint counts, or a checkpoint.
        places: the new places of data sets that have been moved since a stage drew them.

    Raises:
        UserError: the run has no stages, or its shards are gone or changed.
    """
    checkpoint = find_checkpoint(run)
    state = read_state(checkpoint)
    if not state.stages:
        raise UserError(f"{run} is a run without stages: it has seen its rows as often as it has had epochs.")
    settings = _settings(checkpoint, state)
    last, task = settings[-1]
    here = (*places, *filter(_is_here, last.train))
    corpora = [Corpus(place, Cache(last.cache, last.cache_gb), task) for place in here]
    moved = {corpus.fingerprint: str(corpus.folder) for corpus in corpora}
    return [
        [
            (tuple(drawn["data"]), _count(state, data, task, number, part, moved))
            for part, drawn in enumerate(line["drawn"])
        ]
        for number, (line, (data, task)) in enumerate(zip(ledger(state), settings, strict=True))
    ]


def _settings(checkpoint: Path, state: TrainState) -> list[tuple[Data, str]]:
    """Data and task of the stages that have begun; in a run that has resumed another's checkpoint, the running stage's
    stand for all, as only they are known."""
    described = described_in(checkpoint)
    if (described / STAGES).is_file():
        stages = load_stored_stages(described / STAGES)
        configs = [stages.config(number) for number in range(len(state.stages))]
    else:
        configs = [load_stored_config(described / CONFIG)] * len(state.stages)
    return [(config.data, config.task.corpus) for config in configs]


def _count(state: TrainState, data: Data, task: str, number: int, part: int, moved: Mapping[str, str]) -> np.ndarray:
    """int64 [numbers]: how often a stage, of these settings, has drawn each number of one of its streams.

    Args:
        moved: folders by the fingerprint of what they hold now, whatever the stage's names for them were.
    """
    stage, line = state.stages[number], ledger(state)[number]
    which = stage.streams[part]
    stream, drawn = remembered(state)[which], line["drawn"][part]
    weights = () if takes_turns(stage, state.streams) else data.weights
    cache = Cache(data.cache, data.cache_gb)
    places = [moved.get(of_part, place) for of_part, place in zip(stream.parts, stream.data, strict=True)]
    if gone := [place for place in places if "://" not in place and not _is_here(place)]:
        raise UserError(
            f"{gone[0]}, which stage {number + 1} has drawn, is gone: give its new place as data.train=PLACE."
        )
    mixture = Mixture(places, weights, cache, task, stream.pairs, stream.where, trains=True)
    if mixture.fingerprint != stream.fingerprint:
        raise UserError(f"{', '.join(places)} holds rows other than those the run has seen: restore them.")
    sampler = make_sampler(mixture, state.seed + which, stream.order)
    counts = np.zeros(sum(mixture.numbers.sizes), dtype=np.int64)
    _add(counts, sampler, drawn["from"], drawn["to"], 1)
    for at in line["skipped"]:
        left_out = np.array([at, at + stage.batch_at(at)])
        ends = taken(stage.shares, left_out - stage.samples)[part] + stage.begins[part]
        _add(counts, sampler, int(ends[0]), int(ends[1]), -1)
    return counts


def _is_here(place: str) -> bool:
    """Whether a folder or files of this machine are there."""
    return Path(place).exists() or any(iglob(place, recursive=True))


def _add(counts: np.ndarray, sampler: Any, begin: int, end: int, sign: int) -> None:
    for first in range(begin, end, AT_ONCE):
        numbers, _ = sampler(np.arange(first, min(first + AT_ONCE, end)))
        np.add.at(counts, numbers, sign)
