"""A user's pictures, in whatever form they are, as shards to train and to evaluate on."""

from __future__ import annotations

import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from mvlm.api.launch import follow
from mvlm.config.shipped import package
from mvlm.data.images.encoded import EXTENSIONS
from mvlm.data.shards.schema import CAPTION, MANIFEST, read_manifest
from mvlm.errors import UserError

HELD_OUT = "eval"
SPLIT = ("--split", f"train=0.9,{HELD_OUT}=0.1")


@dataclass(frozen=True)
class ShardedCorpus:
    """Attributes:
    train, eval: folders of shards; nothing is held out where `eval` is empty.
    images: to train on.
    """

    train: tuple[str, ...]
    eval: tuple[str, ...]
    images: int


def prepare(data: str | Path, out: Path) -> ShardedCorpus:
    """The shards of a corpus: as they are where `data` is shards, else made in `out`, a tenth of the images held out.

    Raises:
        UserError: nothing is there, its form is unknown, or it cannot be sharded.
    """
    path = Path(data)
    if found := find_shards(path):
        return found
    if found := find_shards(out):
        return found
    source = recognise(path)
    follow([sys.executable, "-m", package("data_tools"), "shard", source, str(path), *SPLIT, "--out", str(out)])
    found = find_shards(out)
    if not found:
        raise UserError(f"{path} gave no shards in {out}: look at the sentences above, or shard it yourself.")
    return found


def find_shards(folder: Path, task: str = CAPTION) -> ShardedCorpus | None:
    """A corpus of shards, divided or not; None where there is none.

    Raises:
        UserError: its rows are of another task.
    """
    if (folder / MANIFEST).is_file():
        parts = [folder]
    else:
        parts = sorted(manifest.parent for manifest in folder.glob(f"*/{MANIFEST}"))
    if not parts:
        return None
    rows = {part: read_manifest(part) for part in parts}
    if strangers := [part for part, manifest in rows.items() if manifest.task != task]:
        wanted = "images with captions" if task == CAPTION else f"shards of {task}"
        raise UserError(f"{strangers[0]} holds {rows[strangers[0]].task!r} rows: give {wanted}.")
    train = [part for part in parts if part.name != HELD_OUT or len(parts) == 1]
    held_out = [part for part in parts if part not in train]
    images = sum(rows[part].rows for part in train)
    return ShardedCorpus(tuple(map(str, train)), tuple(map(str, held_out)), images)


def recognise(path: Path) -> str:
    """The source of `data_tools shard` that reads what lies at a path.

    Raises:
        UserError: nothing is there, or none does.
    """
    if not path.exists():
        raise UserError(f"Nothing is at {path}: give a folder of pictures, an archive, a table or shards.")
    source = _of_folder(path) if path.is_dir() else _of_file(path)
    if source is None:
        raise UserError(
            f"{path} is not recognised as a corpus: give a folder with captions.jsonl or with a text file beside each "
            "picture, a tar of either, a CSV or TSV table, parquet, or what `data_tools shard` has made of it."
        )
    return source


def _of_folder(path: Path) -> str | None:
    if (path / "captions.jsonl").is_file():
        return "folder"
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return "hf"
    if any(path.glob("*_stats.json")):
        return "img2dataset"
    if any(path.rglob("*.parquet")):
        return "hf"
    texts = any(path.rglob("*.txt"))
    if texts and any(file.suffix[1:].lower() in EXTENSIONS for file in path.rglob("*")):
        return "side_by_side"
    return None


def _of_file(path: Path) -> str | None:
    if path.suffix.lower() in (".csv", ".tsv"):
        return "table"
    if path.suffix.lower() == ".parquet":
        return "hf"
    try:
        with tarfile.open(path) as archive:
            first = [member.name for member, _ in zip(archive, range(1000), strict=False)]
    except (tarfile.TarError, OSError, EOFError):
        return None
    return "folder" if any(Path(name).name == "captions.jsonl" for name in first) else "webdataset"
