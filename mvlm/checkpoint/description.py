"""The description of a checkpoint's weights, stored beside them: settings, tokenizer, answers, text encoder."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from mvlm.checkpoint.layout import (
    EMA,
    INDEX,
    STATE,
    UNREADABLE,
    WEIGHTS,
    Entry,
    candidates,
    has_checkpoints,
    read_index,
    step_of,
)
from mvlm.checkpoint.state import TrainState
from mvlm.config.load import STAGE
from mvlm.config.toml import read_tables
from mvlm.errors import UserError

CONFIG, DEEPSPEED, RUN_JSON = "config.toml", "deepspeed.json", "run.json"
STAGES, LEDGER = "stages.toml", "stages.jsonl"  # of a run with stages; the ledger is in its folder only
TOKENIZER, TEXT_ENCODER = "tokenizer", "text_encoder"
METRICS, EVALUATIONS, SKIPPED, QUARANTINE = "metrics.jsonl", "eval.jsonl", "skipped.jsonl", "quarantine.jsonl"
TRACKERS = "trackers.json"  # by tracker the name by which it knows the run, so that the next attempt resumes the same
RECORDS = METRICS, EVALUATIONS, SKIPPED, QUARANTINE, TRACKERS
"""Files of a run folder, and of no checkpoint, that only ever grow."""
LOSSES = ("loss", "image", "text", "itc", "itm", "task")  # their keys in a training line of METRICS
DESCRIPTION = re.compile(
    rf"{re.escape(CONFIG)}|{re.escape(DEEPSPEED)}|{re.escape(RUN_JSON)}|{re.escape(STAGES)}"
    rf"|({TOKENIZER}|{TEXT_ENCODER})/[A-Za-z0-9_][A-Za-z0-9_.-]*\.(json|txt|model|jinja)"
)
"""Names of its files, the same in a checkpoint and in a run folder; nothing that could be executed."""


def listed(checkpoint: Path) -> list[Entry]:
    """The files that index.json lists; raises `UserError` if that is damaged."""
    try:
        return read_index(checkpoint)
    except UNREADABLE as error:
        raise UserError(f"{checkpoint / INDEX} is damaged ({error}): use another checkpoint.") from None


def listed_weights(checkpoint: Path) -> list[Entry]:
    """Those of the weights and of their average."""
    return [entry for entry in listed(checkpoint) if entry.file.startswith((f"{WEIGHTS}-", f"{EMA}-"))]


def fingerprint(checkpoint: Path) -> str:
    """Equal exactly when the files of the weights, and of their average, are the same; moments do not matter."""
    return hashlib.sha256("".join(sorted(entry.sha256 for entry in listed_weights(checkpoint))).encode()).hexdigest()


def described_in(checkpoint: Path) -> Path:
    """The folder with the description of a checkpoint.

    It is the checkpoint itself, whose index.json has the hashes of these files. One from before version 0.1 has
    no copies: for it, the run folder is returned.

    Raises:
        UserError: a file is missing, or is not what was saved.
    """
    entries = [entry for entry in listed(checkpoint) if DESCRIPTION.fullmatch(entry.file)]
    if not entries:
        run = checkpoint.parent.parent
        if lacking := [name for name in (CONFIG, TOKENIZER, TEXT_ENCODER) if not (run / name).exists()]:
            raise UserError(
                f"{run} lacks {' and '.join(lacking)}, of which {checkpoint.name} has no copy: "
                "copy it there from a backup of that folder or from its checkpoint.mirror."
            )
        return run
    for entry in entries:
        try:
            how = f"does not have the SHA-256 that {INDEX} says" if entry.damage(checkpoint) else ""
        except OSError:
            how = "is missing"
        if how:
            raise UserError(f"{checkpoint / entry.file} {how}: use another checkpoint, or copy this one again.")
    return checkpoint


def count_stages(run: Path) -> int:
    """How many stages a run's file of stages has; 1 for a run without one.

    Raises:
        UserError: the file is damaged.
    """
    return len(read_tables(run / STAGES, "file of stages").get(STAGE, [{}])) if (run / STAGES).is_file() else 1


def is_at_end(run: Path, steps: int) -> bool:
    """Whether the latest checkpoint of a run, which must have one, has reached `steps` and owes no evaluation."""
    latest = candidates(run).first
    try:
        owes = json.loads((latest / STATE).read_text(encoding="utf-8")).get("unevaluated", False)
    except UNREADABLE:
        owes = False
    return step_of(latest) >= steps and not owes


def stages_over(run: Path) -> int:
    """How many stages a run has completed by its latest checkpoint; their data is no longer needed."""
    if not has_checkpoints(run):
        return 0
    try:
        state = TrainState.from_json(json.loads((candidates(run).first / STATE).read_text(encoding="utf-8")))
        made = state.step - state.unevaluated  # a step whose evaluation is owed keeps its stage
        return sum(made >= stage.end for stage in state.stages)
    except (*UNREADABLE, UserError):  # training will report it
        return 0
