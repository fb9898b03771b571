"""Where a corpus is written: to a folder of this machine or any fsspec URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from mvlm.data.shards.schema import MANIFEST

from .folder import open_folder
from .remote import open_url
from .store import STATE, Store


def open_store(out: Path | str, resumable: bool, shared: bool = False) -> AbstractContextManager[Store]:
    """The store for a folder, as `open_folder`, or for a URL."""
    return open_url(out, shared) if isinstance(out, str) else open_folder(out, resumable, shared)


@contextmanager
def staged(out: Path | str) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `out` in one rename if the block ends well and vanishes if not.

    At a URL, the files appear when all of them are made, the manifests last.

    Raises:
        UserError: `out` holds something already, another process is writing it, or there is no room for it.
    """
    with open_store(out, resumable=False) as store:
        store.begin(None)
        yield store.work
        made = sorted(str(path.relative_to(store.work)) for path in store.work.rglob("*") if path.is_file())
        names = [name for name in made if not name.startswith(f"{STATE}/")]
        last = [name for name in names if name.rpartition("/")[2] == MANIFEST]
        for name in names:
            if name not in last:
                store.keep(name)
        store.finish(last)
