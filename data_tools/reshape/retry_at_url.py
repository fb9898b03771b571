"""A corpus at a URL as a local folder during a retry, and the upload of what the retry has made.

New shards, which no manifest names yet, go first; then one object holds all files that change, so that the retry has
happened in full or not at all; then each of these takes its place. The next retry completes one that was killed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mvlm.data.shards.schema import MANIFEST
from mvlm.runtime.storage import Storage

from ..store.store import STATE

READY = ".retry.json"
REMEDY = "check that its store can be written, and run the same command again"


@contextmanager
def retried_here(url: str) -> Iterator[Path]:
    """Yield the corpus as a folder. Nothing keeps two retries of one URL apart."""
    storage = Storage(url, REMEDY)
    _put_in_place(storage)
    with tempfile.TemporaryDirectory(prefix="mvlm-retry-") as above:
        folder = Path(above) / storage.url.rpartition("/")[2]
        folder.mkdir()
        before = {}
        for name in storage.sizes():
            if not name.startswith(f"{STATE}/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                storage.download(name, folder / name)
                before[name] = (folder / name).stat().st_mtime_ns
        yield folder
        made = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        for name in made.keys() - before.keys():
            storage.upload(made[name], name)
        changed = [name for name in made if name in before and before[name] != made[name].stat().st_mtime_ns]
        storage.write(READY, json.dumps({name: made[name].read_text("utf-8") for name in changed}).encode())
        _put_in_place(storage)


def _put_in_place(storage: Storage) -> None:
    """Write what changes, the manifests first."""
    content = storage.read(READY)
    if content is None:
        return
    texts: dict[str, str] = json.loads(content)
    for name in sorted(texts, key=lambda name: (name.rpartition("/")[2] != MANIFEST, name)):
        storage.write(name, texts[name].encode())
    storage.delete(READY)
