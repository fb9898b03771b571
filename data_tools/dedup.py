"""Images seen before: by their bytes, or by a perceptual hash that shrunk and re-encoded copies share nearly."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np

from data_tools.check import Checked, exact_hash
from data_tools.corpora import batches
from data_tools.engines import Map
from data_tools.image import decode, dhash
from mvlm.data.schema import IMAGE_COLUMNS, read_manifest

DISTANCE = 4
"""Bits in which two perceptual hashes of 64 may differ by default."""

MOST = 11
"""Bits beyond which the index would look at too many hashes, and pictures that have nothing in common would match."""

BLOCK_BITS = 16
PLAIN = 6
"""Set bits below which a picture is too plain to be told from others by its hash; it counts as like no other."""

DUPLICATE, NEAR_DUPLICATE, EXCLUDED = "image is a duplicate", "image is a near duplicate", "image is excluded"

ENTRY = struct.Struct("<16s16sQ")  # digest of the id, digest of the image's bytes, perceptual hash


class NearHashes:
    """A set of 64-bit hashes asked for those within a Hamming distance; 24 bytes a hash and never a full scan.

    Hashes are filed by each of their four 16-bit blocks: of two at most d apart, some block differs in d // 4 bits
    at most, so that it is enough to look there.
    """

    def __init__(self, distance: int) -> None:
        self._distance = distance
        self._hashes = array("Q")
        self._filed: list[dict[int, array[int]]] = [{} for _ in range(64 // BLOCK_BITS)]
        reach = distance * BLOCK_BITS // 64
        self._flips = [sum(1 << bit for bit in bits) for n in range(reach + 1) for bits in combinations(range(16), n)]

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, value: int) -> None:
        for filed, block in zip(self._filed, _blocks(value), strict=True):
            filed.setdefault(block, array("I")).append(len(self._hashes))
        self._hashes.append(value)

    def near(self, value: int) -> bool:
        """Whether a hash within the distance was added."""
        if not self._hashes or value.bit_count() < PLAIN:
            return False
        found = [
            filed[block ^ flip]
            for filed, block in zip(self._filed, _blocks(value), strict=True)
            for flip in self._flips
            if block ^ flip in filed
        ]
        if not found:
            return False
        candidates = np.concatenate([np.frombuffer(places, np.uint32) for places in found])
        apart = np.bitwise_count(np.frombuffer(self._hashes, np.uint64)[candidates] ^ np.uint64(value))
        return bool((apart <= self._distance).any())


def _blocks(value: int) -> list[int]:
    return [value >> shift & (1 << BLOCK_BITS) - 1 for shift in range(0, 64, BLOCK_BITS)]


class Seen:
    """The ids and images of the records kept so far: about 150 bytes a record."""

    def __init__(self, dedup: str, distance: int) -> None:
        self._dedup = dedup
        self._keys: set[bytes] = set()
        self._exact: set[bytes] = set()
        self._near = NearHashes(distance)
        self._new = bytearray()

    def refuses(self, key: str, found: Checked) -> str:
        """Why the record must not be kept, or "" where it may; then it is remembered."""
        entry = ENTRY.pack(_digest(key), found.exact, found.pictures[0].perceptual)
        digest, exact, perceptual = ENTRY.unpack(entry)
        if digest in self._keys:
            return "duplicate id"
        if self._dedup == "perceptual" and self._near.near(perceptual):
            return NEAR_DUPLICATE
        if self._dedup and exact in self._exact:
            return DUPLICATE
        self._remember(digest, exact, perceptual)
        self._new += entry
        return ""

    def _remember(self, digest: bytes, exact: bytes, perceptual: int) -> None:
        self._keys.add(digest)
        if self._dedup:
            self._exact.add(exact)
        if self._dedup == "perceptual":
            self._near.add(perceptual)

    def new(self) -> bytes:
        """What was remembered since this was last asked, for `restore`."""
        new = bytes(self._new)
        self._new.clear()
        return new

    def restore(self, new: bytes) -> None:
        for entry in ENTRY.iter_unpack(new):
            self._remember(*entry)


class Excluded:
    """The images of some corpora, by perceptual hash and, for pictures too plain for one, by their bytes.

    All are decoded on opening.
    """

    def __init__(self, folders: Iterable[Path], distance: int, run: Map) -> None:
        self._near = NearHashes(distance)
        self._exact: set[bytes] = set()
        for image, perceptual in run(_hash, _images(folders), len):
            self._near.add(perceptual)
            self._exact.add(exact_hash([image]))

    def holds(self, found: Checked) -> bool:
        """Whether any picture of a record is among them."""
        return found.exact in self._exact or any(self._near.near(picture.perceptual) for picture in found.pictures)


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _hash(image: bytes) -> int:
    return dhash(decode(image))


def _images(folders: Iterable[Path]) -> Iterator[bytes]:
    for folder in folders:
        for batch in batches(folder, read_manifest(folder)):
            for name in IMAGE_COLUMNS:
                if name in batch.schema.names:
                    yield from (image.as_py() for image in batch[name])
