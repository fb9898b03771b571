"""Reads and writes the tensors of a checkpoint without DeepSpeed. Their layout: mvlm/checkpoint/layout.py."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mvlm.checkpoint.cut import WHOLE, Cut, TensorPart
from mvlm.checkpoint.description import listed, listed_weights
from mvlm.checkpoint.layout import EMA, UNREADABLE, WEIGHTS, Entry, read_format
from mvlm.config.parameters import present_name
from mvlm.errors import UserError

METADATA = "__metadata__"
"""The one key in the header of a safetensors file that is not a tensor's."""


class _Piece(NamedTuple):
    """What one file has of a tensor: elements `start` to before `stop` of a flattened cut of it."""

    cut: Cut
    start: int
    stop: int
    file: TensorFile
    title: str  # in that file


@dataclass(frozen=True)
class TensorFile:
    """A file of a checkpoint, read one part at a time."""

    path: Path
    file: safe_open

    def pieces(self) -> Iterator[tuple[str, tuple[int, ...], _Piece]]:
        """Of each tensor in the file: its title, its whole shape, and the piece of it that is here."""
        parts = self.file.metadata() or {}
        for title in self.file.keys():  # noqa: SIM118
            shape, start, cut = tuple(self.file.get_slice(title).get_shape()), 0, WHOLE
            count = math.prod(shape)
            if title in parts:
                place = json.loads(parts[title])
                shape, start, cut = tuple(place["shape"]), place["start"], Cut(*place.get("cut", WHOLE))
            yield title, shape, _Piece(cut, start, start + count, self, title)

    def read_into(self, target: Tensor, title: str, start: int) -> None:
        """Fill a flat tensor with a stored one's elements from `start` on, reading no more than these.

        The file is open only for that long: a checkpoint may have more files than a process may open.

        Raises:
            OSError: it is gone, or has become shorter.
        """
        with open(self.path, "rb", buffering=0) as content:
            content.seek(self._starts[title] + start * target.itemsize)
            left = _bytes(target)
            while left:
                if not (count := content.readinto(left)):
                    raise OSError("it has become shorter")
                left = left[count:]

    @functools.cached_property
    def _starts(self) -> dict[str, int]:
        """Where each tensor's bytes begin in the file."""
        with open(self.path, "rb", buffering=0) as content:
            length = struct.unpack("<Q", content.read(8))[0]
            header = json.loads(content.read(length))
        return {title: 8 + length + entry["data_offsets"][0] for title, entry in header.items() if title != METADATA}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint, in one file or in pieces that lie in several."""

    name: str
    shape: tuple[int, ...]
    pieces: list[_Piece]

    @property
    def path(self) -> Path:
        """The file that has it, or the first of several."""
        return self.pieces[0].file.path

    def tensor(self) -> Tensor:
        """The tensor, read: the library would map its files, whose pages stay in memory until all are closed."""
        return self.part(0, math.prod(self.shape)).view(self.shape)

    def weight(self) -> Tensor:
        """Raises: UserError: it holds NaN or infinity."""
        weight = self.tensor()
        require_finite(self.name, weight, str(self.path))
        return weight

    def part(self, start: int, stop: int) -> Tensor:
        """Elements `start` to before `stop` of the flattened tensor, reading no more than these.

        Raises:
            OSError: a file is gone, or has become shorter.
        """
        found = torch.empty(stop - start, dtype=torch.float32, device="cpu")  # whatever torch's defaults are
        count = math.prod(self.shape)
        for piece in self.pieces:
            low, high = max(piece.cut.before(start, count), piece.start), min(piece.cut.before(stop, count), piece.stop)
            if low >= high:
                continue
            first, places = piece.cut.positions(low, high, count)
            target = found[first - start :]
            if isinstance(places, slice):
                piece.file.read_into(target[places], piece.title, low - piece.start)
            else:
                own = found.new_empty(high - low)
                piece.file.read_into(own, piece.title, low - piece.start)
                target[places] = own
        return found

    def require_whole(self, checkpoint: Path) -> None:
        """Raises: UserError: a piece is missing, or there are too many."""
        cuts: dict[Cut, int] = {}  # how many elements of each have been found
        is_right = True
        for piece in self.pieces:
            is_right &= piece.start == cuts.get(piece.cut, 0)
            cuts[piece.cut] = piece.stop
        rows, _, of = self.pieces[0].cut
        if not is_right or cuts != {Cut(rows, place, of): math.prod(self.shape) // of for place in range(of)}:
            raise UserError(f"{checkpoint} lacks part of {self.name}: the checkpoint is damaged; use another.")


@contextmanager
def open_tensors(checkpoint: Path, kind: str) -> Iterator[dict[str, StoredTensor]]:
    """Every tensor of one kind: `files[title].tensor()` reads only that one.

    Parameters have their present names, whatever the checkpoint's format.

    Args:
        kind: WEIGHTS, MOMENTS or EMA.

    Raises:
        UserError: a file is missing, cut short or damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    entries, written_in = listed(checkpoint), read_format(checkpoint)
    with ExitStack() as stack:
        for entry in entries:
            if entry.file.startswith(f"{kind}-"):
                path = checkpoint / entry.file
                file = TensorFile(path, stack.enter_context(_open(path, entry.bytes)))
                try:
                    pieces = list(file.pieces())
                except UNREADABLE as error:
                    raise UserError(f"{path} is damaged ({error}): use another checkpoint.") from None
                for stored, shape, piece in pieces:
                    title = _present_title(stored, written_in)
                    tensors.setdefault(title, StoredTensor(title, shape, [])).pieces.append(piece)
        for tensor in tensors.values():
            tensor.pieces.sort(key=itemgetter(0, 1))
            tensor.require_whole(checkpoint)
        yield tensors


def _present_title(title: str, written_in: int) -> str:
    """Moments' titles are `exp_avg/<name>`."""
    kind, slash, name = title.rpartition("/")
    return kind + slash + present_name(name, written_in)


def is_averaged(checkpoint: Path) -> bool:
    """Whether an average of the weights lies beside them."""
    return any(entry.file.startswith(f"{EMA}-") for entry in listed(checkpoint))


@contextmanager
def open_weights(checkpoint: Path) -> Iterator[dict[str, StoredTensor]]:
    """The weights to evaluate, or to start another run from: the average of each, where there is one.

    Raises:
        UserError: a file is missing, cut short or damaged.
    """
    with open_tensors(checkpoint, WEIGHTS) as weights, open_tensors(checkpoint, EMA) as averages:
        for entry in listed_weights(checkpoint):
            if damage := entry.damage(checkpoint):
                raise UserError(f"{checkpoint} is damaged ({damage}): use another checkpoint.")
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


def write_tensors(path: Path, tensors: Mapping[str, Tensor | TensorPart]) -> Entry:
    """Write fp32 tensors, or parts of some, as `stream_tensors` does."""
    parts = {title: part for title, part in tensors.items() if isinstance(part, TensorPart) and not part.is_whole}
    places = {title: json.dumps(_place_of(part)) for title, part in parts.items()}
    stored = {title: tensor if isinstance(tensor, Tensor) else _as_stored(tensor) for title, tensor in tensors.items()}
    return stream_tensors(path, {title: tensor.shape for title, tensor in stored.items()}, stored.__getitem__, places)


def _place_of(part: TensorPart) -> dict[str, Any]:
    """For a file's metadata."""
    place: dict[str, Any] = {"shape": part.shape, "start": part.start}
    return place if part.cut == WHOLE else place | {"cut": part.cut}


def _as_stored(part: TensorPart) -> Tensor:
    return part.elements.view(part.shape) if part.is_whole else part.elements


def stream_tensors(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> Entry:
    """Write a safetensors file, hashed on the way and synced, with one tensor in memory at a time.

    The format is that of https://github.com/huggingface/safetensors: the header's length in eight bytes, the header
    as JSON padded with spaces, the tensors' bytes one after another. A file written by its library would have to be
    read again for the hash.

    Args:
        read: gives the contiguous fp32 tensor of a title.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for title, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[title] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:

        def write(content: bytes | memoryview) -> None:
            digest.update(content)
            file.write(content)

        write(struct.pack("<Q", len(text)) + text)
        for title, shape in shapes.items():
            tensor = read(title)
            assert tensor.dtype == torch.float32 and tuple(tensor.shape) == tuple(shape), title
            write(_bytes(tensor))
        file.flush()
        os.fsync(file.fileno())
    return Entry(path.name, 8 + len(text) + end, digest.hexdigest())


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def require_finite(name: str, weight: Tensor, where: str) -> None:
    """Raise `UserError` if a weight holds NaN or infinity, for which training would blame its samples.

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
