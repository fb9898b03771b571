"""Where to find the packages and files that a checkout has beside `mvlm`, and an installed wheel inside it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_HOME = Path(__file__).parent.parent


def package(name: str) -> str:
    """The name by which `data_tools` or `cluster` is imported and started here."""
    return f"mvlm.{name}" if find_spec(f"mvlm.{name}") else name


def shipped(folder: str) -> Path:
    """A folder of shipped files, such as `ds_configs`."""
    return next(path for path in (_HOME / folder, _HOME.parent / folder) if path.is_dir())


def find_example(given: str | Path) -> Path:
    """A user's file, or the shipped one that pages name by its place in a checkout: `examples/scenes.toml`."""
    path = Path(given)
    shipped_as = [home / path for home in (_HOME, _HOME.parent) if path.parts[:1] == ("examples",)]
    return next((file for file in (path, *shipped_as) if file.exists()), path)


def find_file(given: str | Path, folder: str) -> Path:
    """A user's file, or the shipped one that pages name: `ds_configs/zero1.json`, `zero1.json` or `zero1`.

    Any other path that does not exist stays as it is: a mistyped one must not become a shipped file of that name.

    Args:
        folder: of the shipped ones.
    """
    path, home = find_example(given), shipped(folder)
    if path.is_file():
        return path
    for file in sorted(home.rglob("*")):
        inside = file.relative_to(home)
        if file.suffix in (".toml", ".json") and path in (Path(file.name), Path(file.stem), _WRITTEN[folder] / inside):
            return file
    return path


_WRITTEN = {"configs": Path("mvlm/configs"), "ds_configs": Path("ds_configs"), "cluster": Path("cluster")}
"""Each folder as the pages write it."""
