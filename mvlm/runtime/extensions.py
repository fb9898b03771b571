"""Where torch keeps the extensions that it compiles, and the locks of compilations under way."""

from __future__ import annotations

import os
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from mvlm.runtime.log import rank_log

QUIET_SECONDS = 600.0
"""If no file of an extension changes for so long, its compilation is taken for dead, on whichever machine it was."""


def extensions_folder() -> Path:
    """Where torch keeps extensions that it has compiled."""
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"


def locks() -> list[Path]:
    """Locks of compilations under way or killed; none if torch would not wait for a killed one's."""
    found = sorted(path for pattern in ("*/lock", "*/*/lock") for path in extensions_folder().glob(pattern))
    return found if found and waits_for_files() else []


@cache
def waits_for_files() -> bool:
    """Whether torch compiles nothing as long as a file `lock` is there. Since pytorch/pytorch#190543, in 2.15, the file
    stays for good and the system locks it, and unlocks it if the process is killed."""
    torch = find_spec("torch")
    folders = torch.submodule_search_locations if torch else None
    sources = [Path(folder, "utils/cpp_extension.py") for folder in folders or ()]
    return any("FileBaton(" in source.read_text(encoding="utf-8") for source in sources if source.is_file())


def open_files() -> set[str]:
    """Files open in all processes that may be inspected, which include this user's."""
    found = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found.add(os.readlink(descriptor))
        except OSError:
            continue
    return found


def wait_for_compilations(extensions: set[str]) -> None:
    """Wait until no other process compiles any of these, and remove the locks of killed compilations.

    torch itself would wait for such a lock forever. A lock that no process of this machine holds may be another
    machine's, whose compilation is taken for dead when nothing in its folder has changed for `QUIET_SECONDS`.
    """
    for lock in locks():
        if lock.parent.name in extensions:
            _wait_for(lock)


def _wait_for(lock: Path) -> None:
    minutes = f"{QUIET_SECONDS / 60:.0f} minutes"
    rank_log.info(
        f"Waiting for {lock}, until {lock.parent.name} is compiled or nothing has changed there for {minutes}."
    )
    changed, since = 0.0, 0.0
    while lock.exists():
        is_open = os.path.realpath(lock) in open_files()  # first, since its removal would change the folder
        found = _last_change(lock.parent)
        if found != changed:
            # Only the first look relies on clocks; one of them may be set back later.
            age = 0.0 if changed else max(0.0, time.time() - found)
            changed, since = found, time.monotonic() - age
        if not is_open and time.monotonic() - since > QUIET_SECONDS:
            lock.unlink(missing_ok=True)
            rank_log.info(f"Removed {lock}, which a killed compilation had left.")
        time.sleep(0.5)


def _last_change(folder: Path) -> float:
    changes = []
    for path in (folder, *folder.iterdir()):
        try:
            changes.append(path.stat().st_mtime)
        except FileNotFoundError:
            continue  # compilers make and remove files
    return max(changes)
