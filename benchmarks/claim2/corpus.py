"""The icons cut into nested training parts and held-out samples, and the tokenizer and dictionary of each share."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.claim2.plan import SHARES, Size
from data_tools.__main__ import main as data_tools
from mvlm.api.dictionary import make_dictionary
from mvlm.config.schema import Data
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.schema import MANIFEST, read_manifest
from mvlm.data.shards.tables import columns_of
from mvlm.errors import UserError

HELD_OUT = ("validation", "concepts", "designers", "both")
PARTS = tuple(f"p{share}" for share in SHARES)


@dataclass(frozen=True)
class Icons:
    """Args:
    home: folder of the parts, samples, tokenizers and dictionaries.
    foils, validation_foils: shards of foils.
    """

    home: Path
    foils: str
    validation_foils: str

    def train(self, share: int) -> list[str]:
        """The parts that make a share, the smaller ones first."""
        return [str(self.home / "train" / part) for part in PARTS[: SHARES.index(share) + 1]]

    def tokenizer(self, share: int) -> str:
        return str(self.home / f"tokenizer-{share}.json")

    def dictionary(self, share: int) -> str:
        return str(self.home / f"dictionary-{share}.safetensors")

    def sample(self, split: str) -> str:
        return str(self.home / split / "sample")


def prepare(shards: Path, home: Path, size: Size, data: Data, image_size: int) -> Icons:
    """The parts in `home`, made unless they are there; other processes wait for them.

    Args:
        data, image_size: from the size's TOML.

    Raises:
        UserError: `shards` is not what examples/icons/make.sh writes.
    """
    pairs, foils = shards / "pairs", shards / "foils"
    missing = [folder for folder in (pairs / "train", foils / "opposites") if not (folder / MANIFEST).is_file()]
    if missing:
        raise UserError(f"{missing[0]} holds no shards: make them with examples/icons/make.sh, or give --shards.")
    home.mkdir(parents=True, exist_ok=True)
    icons = Icons(home, str(foils / "opposites"), str(foils / "validation"))
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        train = pairs / "train"
        if size.pairs:
            train = _sampled(train, home / "few", size.pairs)
        shares = np.diff([0, *SHARES]) / 100
        _split(train, home / "train", dict(zip(PARTS, shares, strict=True)))
        for split in HELD_OUT:
            _sampled(pairs / split, home / split, size.rows)
        for share in SHARES:
            tokenizer, dictionary = icons.tokenizer(share), Path(icons.dictionary(share))
            if not Path(tokenizer).exists():
                _call(["tokenizer", *icons.train(share), "--out", tokenizer, "--vocab", str(data.vocabulary)])
            if size.dictionary and not dictionary.exists():
                make_dictionary(icons.train(share), dictionary, image_size)
    return icons


def units(folder: str, rows: int) -> np.ndarray:
    """int64 [rows]: for each of the first rows, the number of its group of concepts. Icons of one concept, whoever drew
    them, are not independent: a group is one unit of the analysis."""
    groups: list[str] = []
    location = Mixture([folder], task=read_manifest(folder).task).corpora[0].location
    for number in range(len(location.manifest.shards)):
        groups += columns_of(location, number, ["group"])[0]["group"].to_pylist()
    return np.unique(groups[:rows], return_inverse=True)[1]


def by_unit(score_N: np.ndarray, unit_N: np.ndarray) -> np.ndarray:
    """The mean score of each unit, in the order of the units' numbers."""
    unit_N = np.unique(unit_N, return_inverse=True)[1]
    mean_U: np.ndarray = np.bincount(unit_N, score_N) / np.bincount(unit_N)
    return mean_U


def _sampled(folder: Path, out: Path, rows: int) -> Path:
    """About so many rows of a corpus, by a hash of their pictures. The first rows would all be from the first sets; and
    since a hash of keys cuts the parts, a sample taken by it would all fall into one part."""
    share = rows / read_manifest(folder).rows
    _split(folder, out, {"sample": share, "rest": 1 - share} if share < 1 else {"sample": 1.0}, "crc32")
    return out / "sample"


def _split(folder: Path, out: Path, shares: dict[str, float], by: str = "key") -> None:
    made_of = out.with_suffix(".json")
    wanted = json.dumps({"of": read_manifest(folder).fingerprint, "shares": shares})
    if not out.exists():
        split = ",".join(f"{name}={share:.8f}" for name, share in shares.items())
        _call(["split", str(folder), "--split", split, "--split-by", by, "--out", str(out)])
        made_of.write_text(wanted, encoding="utf-8")
    elif made_of.read_text(encoding="utf-8") != wanted:
        raise UserError(
            f"{out} was cut from other shards than {folder}: delete {out.parent}, or give another --folder."
        )


def _call(words: list[str]) -> None:
    if data_tools(words):
        raise UserError(f"The icons were not cut: `data_tools {words[0]}` says why above.")
