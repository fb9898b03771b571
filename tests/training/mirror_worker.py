"""One of two ranks, each with its own run folder: it is refused without a mirror, saves, goes back and starts again.

Takes the mirror's URL; writes what it saw to seen.json in its working directory, which no other rank has.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from mvlm.checkpoint.fencing import FencingToken
from mvlm.checkpoint.fetch import begin_without, fetch_newest
from mvlm.checkpoint.folder_group import FolderGroup, find_folder_group
from mvlm.checkpoint.mirror import Mirror
from mvlm.checkpoint.newest import newest_whole
from mvlm.checkpoint.upload import Uploads
from mvlm.config.schema import Checkpoint
from mvlm.errors import UserError
from mvlm.runtime import dist
from mvlm.training.checkpoint.save import Saver
from tests.training.saver_worker import Trained, save

RUN = Path("run")
DESCRIPTION = {"config.toml": b"", "tokenizer/tokenizer.json": b'{"a": 1}', "text_encoder/config.json": b"{}"}
"""What a checkpoint holds besides its tensors."""


def tensor_files() -> list[str]:
    return sorted(path.name for path in (RUN / "checkpoints").glob("step_????????/*.safetensors"))


def start(mirror: Mirror, site: FolderGroup) -> tuple[Saver, Uploads, Trained]:
    """Start an attempt as `mvlm train` does."""
    if not fetch_newest(mirror, RUN, site):
        begin_without(mirror, RUN, site)
    engine, attempt = Trained(), FencingToken(RUN, mirror, resumes=True, group=site)
    uploads = Uploads(mirror, RUN, Checkpoint(keep=1), attempt, site, print)
    return Saver(engine, RUN, Checkpoint(keep=1), attempt, site, uploads, DESCRIPTION), uploads, engine


def user_error_of(action: Callable[[], object]) -> str:
    """The sentence that a user would read; empty if the action succeeds."""
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


def main(url: str) -> dict[str, object]:
    mirror = Mirror(url)
    seen: dict[str, object] = {"without a mirror": user_error_of(lambda: find_folder_group(RUN, mirrored=False))}
    site = find_folder_group(RUN, mirrored=True)
    seen["ranks"] = site.ranks
    saver, uploads, engine = start(mirror, site)
    save(saver, engine, 2)
    seen["written"] = tensor_files()
    uploads.complete_folder()
    seen["completed"] = tensor_files()
    seen["goes back to"] = newest_whole(RUN).name

    save(saver, engine, 4)
    uploads.drain()
    if dist.rank() == 1:
        shutil.rmtree(RUN)  # as if its node had been replaced
    dist.barrier()
    start(mirror, site)
    seen["after the loss of a node"] = (newest_whole(RUN).name, tensor_files())

    empty = Mirror(f"{url}-of-none")
    seen["with another mirror"] = user_error_of(lambda: begin_without(empty, RUN, site))
    for file in (RUN / "checkpoints/step_00000004").glob(f"*-0000{1 - dist.rank()}-of-*"):
        file.unlink()  # as if an attempt had been killed before its first upload
    begin_without(empty, RUN, site)
    seen["latest"] = (RUN / "checkpoints/latest").exists()
    return seen


if __name__ == "__main__":
    dist.init()
    Path("seen.json").write_text(json.dumps(main(sys.argv[1])))
    dist.barrier()
    dist.close()
