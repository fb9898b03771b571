"""Whether a checkpoint is whole, and one that a run can resume; and what makes it so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from torch.nn import Parameter

from mvlm.checkpoint.cut import whole_shape
from mvlm.checkpoint.layout import INDEX, STATE, UNREADABLE, Entry, Writer, damage, find_damaged_file, has_moments
from mvlm.checkpoint.state import TrainState
from mvlm.checkpoint.tensors import StoredTensor
from mvlm.config.parameters import FORMAT
from mvlm.errors import UserError
from mvlm.runtime import dist
from mvlm.runtime.storage import write_durably


def make_whole(
    folder: Path, entries: Sequence[Entry], contents: Mapping[str, bytes], state: TrainState, writer: Writer | None
) -> None:
    """Add a checkpoint's other files, by name, to those of `entries`, and then the index of all; raises OSError."""
    listed = list(entries)
    for name, content in {**contents, STATE: json.dumps(state.to_json()).encode()}.items():
        write_durably(folder / name, content)
        listed.append(Entry(name, len(content), hashlib.sha256(content).hexdigest()))
    about = {"format": FORMAT} | ({"written_by": asdict(writer)} if writer else {})
    write_durably(folder / INDEX, json.dumps(about | {"files": [asdict(entry) for entry in listed]}, indent=1))


def find_damage(checkpoint: Path, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint's files, if anything; the ranks share the reading, and all must call.

    Moments that were all deleted do not count as damage.

    Args:
        hashes: False compares lengths alone.

    Raises:
        StorageLost: on every rank, if any rank cannot reach it.
    """
    return next(filter(None, dist.on_all(lambda: _find_damage_in_share(checkpoint, hashes))), None)


def _find_damage_in_share(checkpoint: Path, hashes: bool) -> str | None:
    if not checkpoint.is_dir():
        return "it is missing"
    try:
        _parse_state(checkpoint)
    except UNREADABLE as error:
        return damage(checkpoint, error)
    return find_damaged_file(checkpoint, hashes, slice(dist.rank(), None, dist.world()))


def read_state(checkpoint: Path) -> TrainState:
    """Where a run stood at a checkpoint.

    Raises:
        UserError: state.json is missing or damaged; StorageLost if it cannot be reached.
    """
    try:
        return _parse_state(checkpoint)
    except UNREADABLE as error:
        reason = damage(checkpoint, error)
        raise UserError(f"{checkpoint / STATE} is damaged ({reason}): use another checkpoint.") from None


def _parse_state(checkpoint: Path) -> TrainState:
    """Raises one of UNREADABLE if state.json is damaged."""
    return TrainState.from_json(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))


def read_step(checkpoint: Path) -> int:
    """How many updates a checkpoint's weights have had.

    Raises:
        UserError: state.json is missing or damaged.
    """
    try:
        return int(json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["step"])
    except UNREADABLE as error:
        raise UserError(f"{checkpoint / STATE} is damaged ({error}): use another checkpoint.") from None


def read_whole_state(checkpoint: Path, hashes: bool = True) -> TrainState:
    """The state of a checkpoint that a run can resume; all ranks must call.

    Raises:
        UserError: it is damaged, or lacks moments that the run needs.
    """
    if reason := find_damage(checkpoint, hashes):
        raise refusal(checkpoint, reason)
    if not can_resume(checkpoint):
        raise UserError(
            f"{checkpoint} holds no optimizer moments, so the run cannot resume exactly: "
            "start a new run with checkpoint.init to take only its weights."
        )
    return _parse_state(checkpoint)


def can_resume(checkpoint: Path) -> bool:
    """Whether an undamaged checkpoint has the moments that its optimiser needs."""
    return _parse_state(checkpoint).updates == 0 or has_moments(checkpoint)


def refusal(checkpoint: Path, reason: str) -> UserError:
    """The error to raise if no other checkpoint can replace a damaged one."""
    return UserError(
        f"{checkpoint} is damaged ({reason}): resume from another checkpoint, by checkpoint.resume in a new run.dir."
    )


def compare_shapes(
    checkpoint: Path,
    weights: Mapping[str, StoredTensor],
    parameters: Mapping[str, Parameter],
    is_fitted: Callable[[str], bool],
) -> None:
    """Raise `UserError` if a checkpoint's weights do not match a model, which may be on the meta device.

    Args:
        is_fitted: whether a parameter may be stored in another shape.
    """
    for name, stored in weights.items():
        shape, parameter = stored.shape, parameters.get(name)
        wanted = None if parameter is None else whole_shape(parameter)
        if wanted is None or (shape != wanted and not is_fitted(name)):
            raise UserError(f"{checkpoint}: {name} of shape {shape} does not fit this model; use its TOML.")
    if lacking := parameters.keys() - weights.keys():
        raise UserError(f"{checkpoint} lacks {min(lacking)}: it is another model's; use its TOML.")


def check_continuity(checkpoint: Path, state: TrainState, fingerprint: str, selection: str) -> None:
    """Raise `UserError` if a run on these shards would not continue as the checkpoint's began.

    Args:
        fingerprint, selection: of the mixture of data.train.
    """
    if state.selection != selection:
        raise UserError(
            f"{checkpoint} was trained on other rows than data.where keeps now (selection "
            f"{state.selection[:12] or 'none'} and not {selection[:12] or 'none'}), since the condition or a table "
            "beside the shards has changed: restore it, or start a new run.dir with checkpoint.init."
        )
    if state.manifest_fingerprint != fingerprint:
        raise UserError(
            f"{checkpoint} was trained on other shards than data.train names (fingerprint "
            f"{state.manifest_fingerprint[:12]} and not {fingerprint[:12]}): "
            "give the same shards, or start a new run.dir with checkpoint.init."
        )
