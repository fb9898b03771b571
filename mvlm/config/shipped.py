"""Where the packages and files are that a checkout has beside `mvlm`, and an installed wheel inside it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_HOME = Path(__file__).parent.parent


def package(name: str) -> str:
    """The name by which `data_tools` or `cluster` is imported and started here."""
    return f"mvlm.{name}" if find_spec(f"mvlm.{name}") else name


def shipped(folder: str) -> Path:
    """A folder of files that are shipped, such as `ds_configs`."""
    return next(path for path in (_HOME / folder, _HOME.parent / folder) if path.is_dir())


def find_file(given: str | Path, folder: str) -> Path:
    """A user's file, or the shipped one of that name, with or without its ending: `zero1` is `ds_configs/zero1.json`.

    Args:
        folder: of the shipped ones.
    """
    path = Path(given)
    if path.is_file():
        return path
    names = {file.name: file for file in sorted(shipped(folder).rglob("*")) if file.suffix in (".toml", ".json")}
    by_stem = {file.stem: file for file in names.values()}
    return names.get(path.name) or by_stem.get(str(given), path)
