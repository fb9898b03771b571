"""A contact sheet: some rows of a corpus as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mvlm.data.images.decode import load_image
from mvlm.data.images.encoded import BadImage
from mvlm.data.shards.in_place import resolved
from mvlm.data.shards.schema import IMAGE_COLUMNS, read_manifest
from mvlm.data.shards.takedown import read_takedown

from ..corpora import rows_at, spread
from ..image import decoded_size

SIDE = 192
"""Pixels of a picture's longer side at most; larger ones are shrunk, so that the file stays small."""

SMALL = 96
"""Pixels up to which a picture is stored without loss, and enlarged without smoothing."""

LONGEST_TEXT = 1_000
"""Characters shown of a text, since a caption may be very long."""

HIDDEN = {crc32 for _, _, crc32 in IMAGE_COLUMNS.values()}

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }}
body {{ margin: clamp(0.7rem, 3vw, 2rem); }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
.sheet {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 230px), 1fr)); gap: 1rem; }}
figure {{ margin: 0; padding: 0.7rem; border: 1px solid #8885; border-radius: 6px; overflow-wrap: anywhere; }}
img {{ max-width: 100%; }} img.small {{ width: 128px; image-rendering: pixelated; }}
.bad {{ display: inline-block; padding: 1rem; border: 1px dashed; color: light-dark(#b00020, #ff8a80); }}
dl {{ margin: 0.5rem 0 0; }} dt {{ opacity: 0.75; font-size: 0.85em; }} dd {{ margin: 0 0 0.3rem; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


def contact_sheet(folders: Iterable[Path], count: int, title: str) -> str:
    """The page: `count` rows of each corpus, evenly spread over it.

    Whatever comes from the corpus is escaped, and its images are decoded and encoded again.

    Raises:
        UserError: a corpus is missing or damaged.
    """
    return PAGE.format(title=escape(title), body="\n".join(_section(folder, count) for folder in folders))


def _section(folder: Path, count: int) -> str:
    manifest = read_manifest(folder)
    kept = np.delete(np.arange(manifest.rows), read_takedown(folder, manifest))
    chosen = kept[spread(len(kept), count)].tolist()
    figures = "\n".join(_figure(row) for row in rows_at(folder, manifest, chosen))
    head = f"{folder.name}: {len(chosen):,} of {manifest.rows:,} {manifest.task} rows"
    return f'<h2>{escape(head)}</h2>\n<div class="sheet">\n{figures}\n</div>'


def _figure(row: dict[str, Any]) -> str:
    pictures = "".join(_picture(value, name) for name, value in row.items() if isinstance(value, bytes))
    texts = "".join(
        f"<dt>{escape(name)}</dt>{_texts(value)}"
        for name, value in row.items()
        if not isinstance(value, bytes) and name not in HIDDEN and value not in ("", [], None)
    )
    return f"<figure>{pictures}<dl>{texts}</dl></figure>"


def _texts(value: Any) -> str:
    """One <dd> per value; equal values in a list are shown once, with their number."""
    numbers = Counter(_text(item) for item in (value if isinstance(value, list) else [value]))
    return "".join(f"<dd>{escape(text)}{f' (×{times})' if times > 1 else ''}</dd>" for text, times in numbers.items())


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… ({len(text):,} characters)"


def _picture(data: bytes, name: str) -> str:
    try:
        data = bytes(resolved(data))
        width, height = decoded_size(data)
    except BadImage as bad:
        return f'<span class="bad">{escape(f"{name}: {bad}")}</span>'
    small = max(width, height) <= SMALL
    kind, encoded = ("png", _encoded(data, "PNG")) if small else ("jpeg", _encoded(data, "JPEG"))
    style = ' class="small"' if small else ""
    return f'<img{style} alt="{escape(name)}" src="data:image/{kind};base64,{base64.b64encode(encoded).decode()}">'


def _encoded(data: bytes, kind: str) -> bytes:
    """As the model sees it, upright and on white, but not cropped."""
    out, shown = io.BytesIO(), load_image(data)
    shown.thumbnail((SIDE, SIDE))
    shown.save(out, kind)
    return out.getvalue()
