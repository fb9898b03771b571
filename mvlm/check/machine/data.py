"""Probes of the JPEG decoder, and of the health of shards."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from mvlm.check.folders import Folders
from mvlm.check.report import Finding, absent, broken, broken_by, works
from mvlm.errors import first_line

SIDE, VIEW = 64, 32
DIFFERENCE = 8.0
"""Grey levels, on average, by which decoders may differ on a smooth picture."""
DECODED = 100
"""Rows of a corpus whose images are decoded."""


def find_decoder(folders: Folders) -> Iterator[Finding]:
    from mvlm.data.images.decode import chosen
    from mvlm.errors import UserError

    try:
        choice = chosen()
    except UserError as error:
        yield broken_by("jpeg", str(error))
        return
    facts = {"decoder": choice.name, "passed_over": choice.passed_over}
    if failure := _decodes_wrongly():
        remedy = f"set MVLM_DECODER to something other than {choice.name}"
        yield broken("jpeg", f"The decoder {choice.name} does not decode a JPEG correctly ({failure})", remedy, facts)
    elif choice.passed_over:
        reasons = "; ".join(f"not {name}: {reason}" for name, reason in choice.passed_over.items())
        says = f"JPEGs are decoded by {choice.name}, correctly but more slowly than by our own decoder ({reasons})"
        yield absent("jpeg", says, "install libjpeg-turbo's headers and a C compiler, and mvlm again", facts)
    else:
        yield works("jpeg", "JPEGs are decoded correctly by our own decoder", facts=facts)


def _decodes_wrongly() -> str | None:
    """How the chosen decoder's view of a picture differs from Pillow's; None if it does not."""
    import numpy as np
    from PIL import Image

    from mvlm.data.images.decode import BadImage, Decoded, open_picture

    ramp = np.linspace(0, 255, SIDE, dtype=np.uint8)
    picture = np.stack([np.tile(ramp, (SIDE, 1)), np.tile(ramp[:, None], (1, SIDE)), np.full((SIDE, SIDE), 90)], axis=2)
    file = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(file, "JPEG", quality=95)
    views = []
    for opened in (open_picture, Decoded.open):
        view = np.empty((3, VIEW, VIEW), np.uint8)
        try:
            opened(file.getvalue()).show((0, 0, SIDE, SIDE), VIEW, False, view)
        except BadImage as error:
            return first_line(error)
        views.append(view.astype(float))
    difference = float(np.abs(views[0] - views[1]).mean())
    return f"it is {difference:.0f} grey levels off" if difference > DIFFERENCE else None


def find_shards(folders: Folders) -> Iterator[Finding]:
    from mvlm.data.shards.schema import corpora_in

    for folder in map(Path, folders.shards):
        for path in corpora_in(folder) or [folder]:
            yield from _health(path)


def _health(folder: Path) -> Iterator[Finding]:
    """Check the manifest, the lengths and columns of all shards, and the bytes and images of some rows."""
    from mvlm.check.shards import shard_problems
    from mvlm.data.shards.schema import read_manifest
    from mvlm.errors import UserError

    try:
        manifest = read_manifest(folder)
    except UserError as error:
        yield broken_by("shards", str(error))
        return
    problems = shard_problems(folder, manifest, deep=False)
    yield from (broken_by("shards", problem) for problem in problems)
    if problems or not manifest.rows:
        return
    wrong = list(_bad_rows(folder, manifest.task, manifest.rows))
    yield from (broken_by("shards", row) for row in wrong)
    if not wrong:
        tried = min(DECODED, manifest.rows)
        says = f"{folder}: {manifest.rows:,} rows in shards of the right lengths and columns, and {tried} images decode"
        yield works("shards", f"{says} (mvlm-data verify reads all)")


def _bad_rows(folder: Path, task: str, rows: int) -> Iterator[str]:
    from mvlm.data.images.decode import load_image
    from mvlm.data.images.encoded import BadImage, ChangedImage
    from mvlm.data.shards.corpus import Corpus
    from mvlm.errors import UserError

    corpus, count = Corpus(folder, task=task), min(DECODED, rows)
    for number in range(count):
        index = (2 * number + 1) * rows // (2 * count)
        try:
            row = corpus.row(index)
            load_image(row.image)
        except ChangedImage:
            yield f"{corpus.where(index)} (key {row.key!r}) has changed since it was written: copy its shard again."
        except BadImage as error:
            yield f"{corpus.where(index)} has an image that does not decode ({error}): shard the corpus again."
        except UserError as error:
            yield str(error)
