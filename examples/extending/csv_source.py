"""A source: a CSV file with the columns `image` and `caption`, of images in the file's own folder."""

from __future__ import annotations

import csv
from collections.abc import Container, Iterator
from pathlib import Path

from data_tools.readers.images import MISSING_IMAGE, Refused, read_inside
from data_tools.record import Dropped, Record
from mvlm.errors import UserError


class CsvSource:
    """CSV files whose header names `image` and `caption`, the columns that are read; images lie beside the file."""

    def __init__(self, paths: list[Path]) -> None:
        for path in paths:
            if not path.is_file():
                raise UserError(f"No CSV file at {path}: check the path.")
        self._paths = paths
        self.only: Container[str] | None = None
        self.size = sum(path.stat().st_size for path in paths)
        self.position = 0

    def __iter__(self) -> Iterator[Record | Dropped]:
        self.position = 0
        for path in self._paths:
            with path.open(encoding="utf-8", newline="") as file:
                for number, line in enumerate(csv.DictReader(file), start=1):
                    where = f"{path.name}:{number}"
                    if self.only is None or where in self.only:
                        yield _record(path, line, where)
            self.position += path.stat().st_size


def _record(path: Path, line: dict[str, str], where: str) -> Record | Dropped:
    name = line.get("image") or ""
    try:
        image = read_inside(path.parent.resolve(), name)  # never outside the folder
    except Refused as refused:
        return Dropped(name, str(refused), where)
    if image is None:
        return Dropped(name, MISSING_IMAGE, where)
    return Record(key=name, image=image, captions=[line.get("caption")], fields=line, where=where)
