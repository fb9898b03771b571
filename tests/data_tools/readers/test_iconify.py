"""Icons of a small package in iconify's format: which are taken, their captions and drawings, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from made import quarantine, read_rows, run, tree
from PIL import Image

from benchmarks.icons import ceiling
from data_tools.readers.icons import catalogue
from data_tools.readers.icons.catalogue import Catalogue
from data_tools.readers.icons.drawing import resolved, svg_of
from data_tools.readers.icons.names import SetNames
from data_tools.readers.icons.package import icon_sets
from data_tools.readers.icons.render import Renderer, check
from data_tools.readers.images import Refused
from data_tools.record import Record
from data_tools.split import NoSplit, parse_split
from tests.conftest import ROOT

pytest.importorskip("resvg_py")

CAPTURED: dict[str, Any] = {"capture_output": True, "text": True}
CORNER = '<path d="M0 0h8v4H0z"/>'  # in the top left of 16 x 16, wider than high


def bar(number: int) -> dict[str, Any]:
    return {"body": f'<path fill="currentColor" d="M1 {number}h{number + 1}v1H1z"/>'}


def icon_set(prefix: str, author: str, icons: dict[str, Any], **more: Any) -> dict[str, Any]:
    licence = {"title": "MIT", "spdx": more.pop("spdx", "MIT"), "url": "https://example.org/licence"}
    info = {"name": prefix.title(), "author": {"name": author}, "license": licence} | more.pop("info", {})
    return {"prefix": prefix, "info": info, "icons": icons, "width": 16, "height": 16} | more


def package(folder: Path) -> Path:
    """Two sets that may be used and share a drawing, and four that may not be used."""
    first = {
        "arrow-left": bar(1),
        "arrow-right": bar(2),
        "arrow-left-fill": bar(3),
        "github": bar(4),
        "old": bar(5) | {"hidden": True},
        "moves": {"body": '<path d="M0 0h4v4z"><animate attributeName="d"/></path>'},
        "corner": {"body": CORNER},
    }
    aliases = {"back": {"parent": "arrow-left"}, "flipped": {"parent": "corner", "hFlip": True}}
    categories = {"Arrows / All": ["arrow-left"], "Brands": ["corner"]}
    sets = [
        icon_set("first", "Ann", first, aliases=aliases, categories=categories),
        icon_set("second", "Bob", {"previous": bar(1), "home-outline": bar(6)}),
        icon_set("hidden", "Eve", {"a": bar(7)}, info={"hidden": True}),
        icon_set("logos", "Eve", {"a": bar(8)}, info={"category": "Logos"}),
        icon_set("paid", "Eve", {"a": bar(9)}, spdx="CC-BY-NC-4.0"),
        icon_set("shared", "Eve", {"a": bar(10)}, spdx="CC-BY-ND-4.0"),
    ]
    (folder / "json").mkdir(parents=True)
    for content in sets:
        (folder / f"json/{content['prefix']}.json").write_text(json.dumps(content))
    return folder


def test_free_sets_are_drawn_and_captioned(tmp_path: Path) -> None:
    run("shard", "iconify", package(tmp_path / "package"), "--out", tmp_path / "out", "--workers", 1)
    rows = {row["key"]: row for row in read_rows(tmp_path / "out")}
    assert {key: row["captions"] for key, row in rows.items()} == {
        "first:arrow-left": ["arrow left", "back", "previous", "arrow left, arrows all"],
        "first:arrow-right": ["arrow right"],
        "first:arrow-left-fill": ["arrow left filled"],
        "first:flipped": ["flipped"],
        "second:home-outline": ["home outline"],
    }
    assert quarantine(tmp_path / "out") == {"first:moves": "drawing is animated"}
    meta = pq.read_table(tmp_path / "out/000000.meta.parquet").to_pylist()[0]
    expected_meta = {"set": "first", "title": "First", "author": "Ann", "licence": "MIT", "also": "second:previous"}
    expected_meta |= {"licence_url": "https://example.org/licence", "concept": "arrow"}
    assert {name: meta[name] for name in expected_meta} == expected_meta
    assert bar(1)["body"] in meta["svg"]
    assert 'color="#000"' not in meta["svg"]  # so that the drawing takes the colour of the text around it
    renderer = Renderer()
    assert renderer.png(meta["svg"]) == rows["first:arrow-left"]["image"]
    renderer.close()
    with Image.open(io.BytesIO(rows["first:arrow-left"]["image"])) as image:
        dark = np.asarray(image.convert("L")) < 128
    expected = np.zeros((64, 64), bool)
    expected[4:8, 4:12] = True  # M1 1h2v1H1z at four pixels per unit
    assert (dark == expected).all()


def test_an_archive_gives_the_bytes_of_its_folder_in_several_shards_too(tmp_path: Path) -> None:
    folder = package(tmp_path / "package")
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as tar:
        for file in sorted(folder.rglob("*.json")):
            tar.add(file, f"package/json/{file.name}")
    argv = ["--shard-mb", 0.0025, "--workers", 1]
    run("shard", "iconify", folder, "--out", tmp_path / "a", *argv)
    run("shard", "iconify", tmp_path / "package.tgz", "--out", tmp_path / "b", *argv)
    of_folder, of_archive = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert len([name for name in of_folder if name.endswith(".arrow")]) > 2
    del of_folder["source.json"], of_archive["source.json"]
    assert of_folder == of_archive


def test_foils_are_held_out_captions_of_one_set_that_differ_by_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = package(tmp_path / "package")
    monkeypatch.setattr(catalogue, "MOST_HELD_OUT", 1.0)
    monkeypatch.setattr(catalogue, "HELD_OUT_CONCEPTS", 1.0)
    run("shard", "iconify_foils", folder, "--out", tmp_path / "out", "--workers", 1)
    rows = [(row["caption"], row["foil"], row["swapped"]) for row in read_rows(tmp_path / "out")]
    assert rows == [("arrow left", "arrow right", "left/right"), ("arrow right", "arrow left", "left/right")]


def test_the_ceiling_is_how_far_other_designers_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MOST_HELD_OUT", 1.0)
    monkeypatch.setattr(catalogue, "HELD_OUT_CONCEPTS", 1.0)
    for name, bars_of_b in (("agree", (1, 10)), ("differ", (10, 1))):
        folder = tmp_path / name / "package/json"
        folder.mkdir(parents=True)
        for author, (left, right) in (("a", (1, 10)), ("b", bars_of_b)):
            icons = {"go-left": bar(left), "go-right": bar(right), "lone-up": bar(4), "lone-down": bar(5)}
            if author == "b":  # draws only the first two, and adds a dot
                dot = '<path d="M15 15h1v1z"/>'
                icons = {key: {"body": icons[key]["body"] + dot} for key in ("go-left", "go-right")}
            (folder / f"{author}.json").write_text(json.dumps(icon_set(author, author, icons)))
        for source, out in (("iconify", "pairs"), ("iconify_foils", "foils")):
            run("shard", source, folder.parent, "--out", tmp_path / name / out, "--workers", 1)
    for name, right in (("agree", 1.0), ("differ", 0.0)):
        foils = list(ceiling.rows(tmp_path / name / "foils"))
        drawn = ceiling.drawings(tmp_path / name / "pairs", foils)
        for side in ceiling.SIDES:
            assert ceiling.judged(drawn, foils, side) == [("go", "left/right", right)] * 4


def test_a_ceiling_weighs_each_group_of_concepts_equally() -> None:
    found = [("go", "left/right", 1.0), ("go", "left/right", 1.0), ("go", "up/down", 0.0), ("door", "open/closed", 0.5)]
    assert ceiling.shares(found) == {
        "all": (0.625, 4),
        "left/right": (1.0, 2),
        "up/down": (0.0, 1),
        "open/closed": (0.5, 1),
    }
    told = ceiling.by_unit([*found, ("key", "on/off", 1.0)])
    mean, reach = (2 / 3 + 0.5 + 1.0) / 3, 4.3027 * np.std([2 / 3, 0.5, 1.0], ddof=1) / 3**0.5
    assert told == pytest.approx({"share": mean, "low": max(0, mean - reach), "high": 1.0, "groups": 3}, rel=1e-4)


DESIGNERS, CONCEPTS, OF_EACH = 60, 100, 5  # so that no designer has more icons than may be held out


def drawn_by(designer: int) -> dict[str, Any]:
    """Five concepts, each pointing left and right, outlined and filled."""
    icons = {}
    for number in range(OF_EACH):
        concept = (7 * designer + 13 * number) % CONCEPTS
        word = f"{'bdfgklmnpr'[concept // 10]}a{'bdfgklmnpr'[concept % 10]}uz"
        for style, high in (("outline", 2), ("filled", 6)):
            for way, at in (("left", 0), ("right", 8)):
                body = f'<path d="M{at + designer / 100} {concept / 20}h7v{high}h-7z"/>'
                icons[f"{word}-{way}-{style}"] = {"body": body}
    return icons


@pytest.mark.campaign
def test_one_command_makes_shards_sheet_statistics_and_attribution_and_resumes(tmp_path: Path) -> None:
    """Run on a copy of the example, since its script writes relative to its own folder."""
    (tmp_path / "package/json").mkdir(parents=True)
    for number in range(DESIGNERS):
        content = icon_set(f"s{number}", f"Author {number}", drawn_by(number))
        (tmp_path / f"package/json/s{number}.json").write_text(json.dumps(content))
    shutil.copytree(ROOT / "examples/icons", tmp_path / "examples/icons")
    (tmp_path / "elsewhere").mkdir()
    command = ["bash", str(tmp_path / "examples/icons/make.sh"), "../package"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = []
    for _ in range(2):
        variables = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
        done.append(subprocess.run(command, env=variables, cwd=tmp_path / "elsewhere", **CAPTURED))
        assert done[-1].returncode == 0, done[-1].stderr
        made = tree(tmp_path / "shards/icons")
        if len(done) == 1:
            first = made
    assert made == first
    out = tmp_path / "shards/icons"
    assert {file.name for file in (out / "pairs").iterdir() if file.is_dir()} == set(catalogue.SPLITS)
    assert {file.name for file in (out / "foils").iterdir() if file.is_dir()} == {"opposites", "styles", "validation"}
    assert f"{DESIGNERS * OF_EACH * 4:>9,} rows\n" in done[0].stdout
    attribution = (out / "icons_attribution.md").read_text(encoding="utf-8")
    assert f"| s3 | S3 | Author 3 | [MIT](https://example.org/licence) | {OF_EACH * 4} |" in attribution
    for picture in ("icons.png", "icons_statistics.png"):
        with Image.open(out / picture) as image:
            assert np.asarray(image.convert("L")).std() > 1


def test_splits_hold_out_concepts_and_designers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "MOST_HELD_OUT", 1.0)
    sets = [icon_set(f"s{a}", f"Author {a}", {f"thing-{n}-left": bar(n) for n in range(40)}) for a in range(30)]
    for number, content in enumerate(sets):
        for icon in content["icons"].values():
            icon["body"] += f'<path d="M{number} 0h1v1z"/>'
    sets[1]["icons"] |= {name: sets[0]["icons"][f"thing-{name}-left"] for name in map(str, range(5))}
    (tmp_path / "json").mkdir()
    for content in sets:
        (tmp_path / f"json/{content['prefix']}.json").write_text(json.dumps(content))
    found = Catalogue(icon_sets(tmp_path))
    assert found.designer("s0") == found.designer("s1") != found.designer("s2")  # their sets share five drawings
    assert found.group("thing 0") == found.group("0") != found.group("thing 1")
    by_split: dict[str, set[tuple[str, str]]] = {name: set() for name in catalogue.SPLITS}
    for prefix in (content["prefix"] for content in sets):
        for number in range(40):
            concept = f"thing {number}"
            by_split[found.split(prefix, concept)].add((found.designer(prefix), found.group(concept)))
    concepts = {name: {concept for _, concept in pairs} for name, pairs in by_split.items()}
    designers = {name: {designer for designer, _ in pairs} for name, pairs in by_split.items()}
    assert all(by_split[name] for name in ("train", "concepts", "designers", "both"))
    assert not concepts["train"] & (concepts["concepts"] | concepts["validation"] | concepts["both"])
    assert not designers["train"] & (designers["designers"] | designers["both"])
    assert concepts["designers"] <= concepts["train"] and designers["concepts"] <= designers["train"]


@pytest.mark.parametrize(
    ("prefix", "suffixes", "name", "caption", "concept"),
    [
        ("fluent", {"24-filled": "24 Filled"}, "arrow-left-24-filled", "arrow left filled", "arrow"),
        ("fluent", {"24-regular": "24 Regular"}, "lock-open-24-regular", "lock open outline", "lock open"),
        ("ph", {"": "Regular", "thin": "Thin"}, "user-plus", "user plus outline", "user"),
        ("mdi", {}, "traffic-light", "traffic light", "traffic light"),
        ("clarity", {}, "home-line", "home outline", "home"),
        ("icon-park-solid", {}, "add-one", "add filled", "add"),
        ("bxs", {}, "bxs-up-arrow", "up arrow filled", "arrow"),
    ],
)
def test_names_become_captions(prefix: str, suffixes: dict[str, str], name: str, caption: str, concept: str) -> None:
    read = SetNames(prefix, suffixes, {}).read(name)
    assert (read.caption, read.concept) == (caption, concept)


def test_prefixes_that_name_a_style_move_to_the_end() -> None:
    read = SetNames("ic", {}, {"twotone": "Two-Tone", "baseline": "Baseline"}).read
    assert [read(f"{style}-home").caption for style in ("twotone", "baseline")] == ["home duotone", "home"]


@pytest.mark.parametrize(
    ("alias", "turned"),
    [
        ({"hFlip": True}, Image.Transpose.FLIP_LEFT_RIGHT),
        ({"vFlip": True}, Image.Transpose.FLIP_TOP_BOTTOM),
        ({"rotate": 1}, Image.Transpose.ROTATE_270),  # Pillow rotates counterclockwise
        ({"rotate": 2}, Image.Transpose.ROTATE_180),
        ({"rotate": 3}, Image.Transpose.ROTATE_90),
    ],
)
def test_aliases_are_flipped_and_rotated_as_by_pillow(alias: dict[str, Any], turned: Image.Transpose) -> None:
    icons, aliases = {"a": {"body": CORNER}}, {"b": {"parent": "a"} | alias}
    renderer = Renderer()
    icon, alias_icon = (
        Image.open(io.BytesIO(renderer.png(svg_of(resolved(name, icons, aliases), {})))).convert("RGB") for name in "ab"
    )
    renderer.close()
    assert np.array_equal(np.asarray(icon.transpose(turned)), np.asarray(alias_icon))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('<image href="file:///etc/hostname"/>', "drawing has an element that is not drawn"),
        ("<svg:image/>", "drawing has an element that is not drawn"),
        ('<!DOCTYPE svg [<!ENTITY a "b">]>', "drawing has an element that is not drawn"),
        ('<use href="http://localhost/a.svg#b"/>', "drawing refers to another file"),
        ('<use xlink:href="&#x2f;etc/hostname"/>', "drawing refers to another file"),
        ('<path fill="url(/etc/hostname)"/>', "drawing refers to another file"),
        ('<path d="' + "M0 0" * 40_000 + '"/>', "drawing is too large"),
    ],
)
def test_a_hostile_drawing_is_refused_before_it_is_drawn(body: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        check(f"<svg>{body}</svg>")
    check('<svg><use href="#a"/><path fill="url(#b)"/></svg>')


def test_a_drawing_that_cannot_be_rendered_is_refused_and_the_next_is_drawn() -> None:
    layers = '<g id="a0"><path d="M0 0h9v9z"/></g>'
    for n in range(1, 12):
        layers += f'<g id="a{n}">' + f'<use href="#a{n - 1}"/>' * 10 + "</g>"
    renderer = Renderer(seconds=0.3)
    good = svg_of({"body": CORNER}, {})
    with pytest.raises(Refused):
        renderer.png(good.replace("</svg>", f"<defs>{layers}</defs><use href='#a11'/></svg>"))
    assert renderer.png(good).startswith(b"\x89PNG")
    with pytest.raises(Refused, match="shows nothing"):
        renderer.png(good.replace("M0 0h8", "M90 90h8"))
    with pytest.raises(Refused, match="cannot be rendered"):
        renderer.png(good.replace("</svg>", ""))
    renderer.close()


def test_splits_may_be_named_by_a_field() -> None:
    split = parse_split("train,eval", "side")
    sides = {side: Record(str(side), b"", fields={"side": side}) for side in ("eval", "train", "other", None)}
    assert [split.allot(sides[side]) for side in ("eval", "train")] == ["eval", "train"]
    for side, reason in (("other", "field names none of the splits: side is 'other'"), (None, "no field to split by")):
        with pytest.raises(NoSplit, match=reason):
            split.allot(sides[side])
