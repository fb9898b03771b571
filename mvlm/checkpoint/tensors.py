"""Weights at rest: a run's folder, read without DeepSpeed. Its layout: mvlm/checkpoint/layout.py."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mvlm.checkpoint.layout import EMA, UNREADABLE, WEIGHTS, Entry, read_format, read_index
from mvlm.config.parameters import present_name
from mvlm.errors import UserError

METADATA = "__metadata__"
"""What else may stand in the header of a safetensors file."""


@dataclass(frozen=True)
class TensorFile:
    """An open file of a checkpoint, of which one tensor is read at a time, or a part of one."""

    path: Path
    file: safe_open
    stored: dict[str, str]  # the name that the file has for each of its tensors, by the present one

    def tensor(self, title: str) -> Tensor:
        tensor: Tensor = self.file.get_tensor(self.stored[title])
        return tensor

    def weight(self, name: str) -> Tensor:
        """Raises: UserError: it holds NaN or infinity."""
        weight = self.tensor(name)
        require_finite(name, weight, str(self.path))
        return weight

    def piece(self, title: str, start: int, stop: int) -> Tensor:
        """Elements of a tensor laid flat, from `start` to before `stop`; no more than these is read.

        The file is open for as long as that takes, for a checkpoint may have more files than a process may open.

        Raises:
            OSError: it is gone, or has become shorter.
        """
        found = torch.empty(stop - start)
        if not len(found):
            return found
        with open(self.path, "rb", buffering=0) as content:
            content.seek(self._starts[self.stored[title]] + start * found.itemsize)
            left = _bytes(found)
            while left:
                if not (count := content.readinto(left)):
                    raise OSError("it has become shorter")
                left = left[count:]
        return found

    @functools.cached_property
    def _starts(self) -> dict[str, int]:
        """Where each tensor's bytes begin in the file."""
        with open(self.path, "rb", buffering=0) as content:
            length = struct.unpack("<Q", content.read(8))[0]
            header = json.loads(content.read(length))
        return {title: 8 + length + entry["data_offsets"][0] for title, entry in header.items() if title != METADATA}

    def shape(self, title: str) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.stored[title]).get_shape())


def _index(checkpoint: Path) -> list[Entry]:
    try:
        return read_index(checkpoint)
    except UNREADABLE as error:
        raise UserError(f"{checkpoint / 'index.json'} is damaged ({error}): use another checkpoint.") from None


@contextmanager
def open_tensors(checkpoint: Path, kind: str) -> Iterator[dict[str, TensorFile]]:
    """The open file of every tensor of one kind: `files[title].tensor(title)` reads that one alone.

    Parameters have their present names, in whatever format the checkpoint was written.

    Args:
        kind: WEIGHTS, MOMENTS or EMA.

    Raises:
        UserError: a file is missing, cut short or damaged.
    """
    files: dict[str, TensorFile] = {}
    entries, written_in = _index(checkpoint), read_format(checkpoint)
    with ExitStack() as stack:
        for entry in entries:
            if entry.file.startswith(f"{kind}-"):
                file = stack.enter_context(_open(checkpoint / entry.file, entry.bytes))
                stored = {_present_title(title, written_in): title for title in file.keys()}  # noqa: SIM118
                files |= dict.fromkeys(stored, TensorFile(checkpoint / entry.file, file, stored))
        yield files


def _present_title(title: str, written_in: int) -> str:
    """Moments' titles are `exp_avg/<name>`."""
    kind, slash, name = title.rpartition("/")
    return kind + slash + present_name(name, written_in)


def is_averaged(checkpoint: Path) -> bool:
    """Whether an average of the weights lies beside them."""
    return any(entry.file.startswith(f"{EMA}-") for entry in _index(checkpoint))


def fingerprint(checkpoint: Path) -> str:
    """Equal exactly when the weights, and the average of them, are the same files; whether moments lie there or not."""
    weights = [entry for entry in _index(checkpoint) if entry.file.startswith((f"{WEIGHTS}-", f"{EMA}-"))]
    return hashlib.sha256("".join(sorted(entry.sha256 for entry in weights)).encode()).hexdigest()


@contextmanager
def open_weights(checkpoint: Path) -> Iterator[dict[str, TensorFile]]:
    """What to evaluate a checkpoint by or start another run from: the average of each weight, where there is one.

    Raises:
        UserError: a file is missing, cut short or damaged.
    """
    with open_tensors(checkpoint, WEIGHTS) as weights, open_tensors(checkpoint, EMA) as averages:
        yield weights | averages


def _open(path: Path, length: int) -> safe_open:
    size = path.stat().st_size if path.exists() else None
    if size != length:
        found = "is missing" if size is None else f"has {size} bytes and not {length}"
        raise UserError(f"{path} {found}: the checkpoint is damaged; use another.")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): use another checkpoint.") from None


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> Entry:
    """Write fp32 tensors as a safetensors file, hashed on the way and synced, without the interpreter's lock.

    The format is that of https://github.com/huggingface/safetensors: the header's length in eight bytes, the header
    as JSON padded with spaces, the tensors' bytes one after another. Its library would have to read the file again
    for the hash.
    """
    header, end = {}, 0
    for title, tensor in tensors.items():
        assert tensor.dtype == torch.float32, title
        start, end = end, end + tensor.nbytes
        header[title] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pieces: list[bytes | memoryview] = [struct.pack("<Q", len(text)), text, *map(_bytes, tensors.values())]
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return Entry(path.name, 8 + len(text) + end, digest.hexdigest())


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def require_finite(name: str, weight: Tensor, where: str) -> None:
    """Raises: UserError: a weight holds NaN or infinity: training would blame its samples for it.

    Args:
        where: the file, or whose weights they are.
    """
    finite = torch.isfinite(weight)
    if not finite.all():
        kind = "NaN" if torch.isnan(weight).any() else "infinity"
        raise UserError(
            f"{name} of {where} holds {kind} in {int((~finite).sum())} of its {weight.numel()} values: "
            "use another checkpoint."
        )
