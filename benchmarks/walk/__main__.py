"""The three lines of docs/python.md run from an installed wheel, in an empty folder, on pictures that no test has seen.

    python -m benchmarks.walk --python ENVIRONMENT/bin/python --work FOLDER

The pictures are the icons of Debian's package oxygen-icon-theme, with their names and those of the links to them as
captions: a folder of NAME.jpg and NAME.txt. Writes results/walk.json; the report stays in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

RESULTS = Path(__file__).parent / "results/walk.json"
SIZES = ("128x128", "64x64", "256x256", "48x48", "32x32", "22x22")
"""The size of an icon to take: the first that exists."""

KINDS = {"actions": "action", "apps": "application", "mimetypes": "file", "places": "place", "devices": "device"}
KINDS |= {"categories": "category", "emblems": "emblem", "emotes": "face", "animations": "animation"}

THREE_LINES = """
import mvlm

run = mvlm.train("pictures/", out="runs/mine"{settings})
model = mvlm.load("runs/mine")
rows = mvlm.open("runs/mine/shards/eval")[:2]
print(model.similarity([row.image for row in rows], [row.captions[0] for row in rows]))
"""


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--python", type=Path, required=True, help="of an environment that has the wheel")
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--steps", type=int, help="fewer updates than the recipe has")
    asked = arguments.parse_args()
    pictures = asked.work / "pictures"
    if not pictures.exists():
        pictures.mkdir(parents=True)
        write_pictures(icons(asked.work), pictures)
    load, began = os.getloadavg()[0], time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (asked.work / "said.txt").open("a") as said:
        settings = f', settings={{"train.steps": {asked.steps}}}' if asked.steps else ""
        command = [str(asked.python.absolute()), "-c", THREE_LINES.format(settings=settings)]
        subprocess.run(command, cwd=asked.work, env=environment, stdout=said, stderr=subprocess.STDOUT, check=True)
    wall, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    measured = json.loads((asked.work / "runs/mine/evaluation.json").read_text())
    result = {
        "pictures": len(list(pictures.glob("*.jpg"))),
        "wall_s": round(wall),
        "cpu_s": round(used.ru_utime + used.ru_stime),
        "load": {"before": round(load, 1), "after": round(os.getloadavg()[0], 1)},
        "machine": {"cpus": os.cpu_count(), "processor": platform.processor(), "python": platform.python_version()},
        "evaluation": {name: value for name, value in measured.items() if name != "predictions"},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def icons(work: Path) -> Path:
    """The icons in the unpacked package, fetched by apt."""
    subprocess.run(["apt-get", "download", "-q", "oxygen-icon-theme"], cwd=work, check=True)
    (package,) = work.glob("oxygen-icon-theme_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, work / "package"], check=True)
    return work / "package/usr/share/icons/oxygen/base"


def write_pictures(base: Path, out: Path) -> None:
    seen = set()
    for (context, stem), (path, names) in sorted(named(base).items()):
        content = path.read_bytes()
        if content in seen:
            continue
        seen.add(content)
        icon = Image.open(path).convert("RGBA")
        page = Image.new("RGBA", icon.size, "white")
        page.alpha_composite(icon)
        page.convert("RGB").resize((96, 96), Image.Resampling.LANCZOS).save(out / f"{context}-{stem}.jpg", quality=92)
        captions = [f"{name}, {KINDS.get(context, context)}" for name in dict.fromkeys(names)]
        (out / f"{context}-{stem}.txt").write_text("\n".join(captions[:5]) + "\n")


def named(base: Path) -> dict[tuple[str, str], tuple[Path, list[str]]]:
    """For each icon, by its context and its file's name: the file, and its names, including those of its links."""
    found: dict[tuple[str, str], tuple[Path, list[str]]] = {}
    for path in _pictures(base):
        file = path.resolve()
        if file.is_file() and base.resolve() in file.parents:
            _, names = found.setdefault((path.parent.name, file.stem), (file, []))
            names.append(path.stem.replace("-", " ").replace("_", " "))
    return found


def _pictures(base: Path) -> Iterator[Path]:
    for size in SIZES:
        yield from sorted((base / size).rglob("*.png"))


if __name__ == "__main__":
    main()
