"""The contact sheet is self-contained, runs nothing from the corpus, and shows the rows that it claims to show."""

from __future__ import annotations

import base64
import io
import re
import time
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made import photo, read_rows, run
from made_corpus import caption_rows, write_corpus
from PIL import Image

from data_tools.inspect.preview import SIDE
from tests.pictures import encoded


class Page(HTMLParser):
    """The tags of a page with their attributes, and the texts between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def images(self) -> list[Image.Image]:
        sources = [attributes["src"] for tag, attributes in self.tags if tag == "img"]
        assert all(re.match(r"data:image/(png|jpeg);base64,", source) for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


def sheet(tmp_path: Path, corpus: Path, count: int = 100) -> Page:
    run("preview", corpus, "--out", tmp_path / "made/sheet.html", "--count", count)
    return Page((tmp_path / "made/sheet.html").read_text(encoding="utf-8"))


HOSTILE = ['<script>alert("x")</script>', "\"><img src=x onerror='alert(1)'>", "</dd></html> & {title}", "ünï 猫"]


def test_nothing_from_the_corpus_becomes_a_tag(tmp_path: Path) -> None:
    rows = caption_rows(3)
    for row in rows:
        row |= {"captions": HOSTILE, "source": HOSTILE[0], "key": HOSTILE[1] + row["key"]}
    page = sheet(tmp_path, write_corpus(tmp_path / "<b>c", rows))
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "div", "figure", "img", "dl", "dt", "dd"}
    assert {tag for tag, _ in page.tags} == allowed
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert set(HOSTILE) <= set(page.texts)
    policy = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policy[0].startswith("default-src 'none'")


def test_images_are_re_encoded_and_shrunk(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 900, 3), dtype=np.uint8)
    files = []
    for mode, kind in [("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("RGB", "WEBP")]:
        files.append(encoded(Image.fromarray(noise).convert(mode), kind))
    files.append(photo(1, "PNG", (60, 40)))
    rows = [row | {"image": file, "crc32": zlib.crc32(file)} for row, file in zip(caption_rows(7), files, strict=True)]
    page = sheet(tmp_path, write_corpus(tmp_path / "c", rows))
    sizes = [image.size for image in page.images()]
    assert sizes == [(SIDE, 85)] * 6 + [(60, 40)]
    shown = np.asarray(page.images()[-1].convert("RGB"))
    assert (shown == np.asarray(Image.open(io.BytesIO(files[-1])))).all()
    assert not any(file[:200] in (tmp_path / "made/sheet.html").read_bytes() for file in files)


def test_the_rows_shown_are_spread_evenly_over_every_split(tmp_path: Path) -> None:
    for name in ("train", "eval"):
        write_corpus(tmp_path / "c" / name, caption_rows(30, name))
    page = sheet(tmp_path, tmp_path / "c", 3)
    keys = [text for text in page.texts if re.fullmatch(r"(train|eval)\d+", text)]
    assert keys == ["eval5", "eval15", "eval25", "train5", "train15", "train25"]
    assert "eval: 3 of 30 caption rows" in page.texts
    assert len(page.images()) == 6


def test_a_damaged_image_is_named_and_a_long_text_cut(tmp_path: Path) -> None:
    rows = caption_rows(3)
    rows[1]["image"] = rows[1]["image"][:-50]
    rows[2]["captions"] = ["x" * 100_000]
    page = sheet(tmp_path, write_corpus(tmp_path / "c", rows))
    assert len(page.images()) == 2
    assert any("image is damaged" in text for text in page.texts)
    assert max(map(len, page.texts)) < 2_000
    assert any("100,000 characters" in text for text in page.texts)


def test_many_captions_of_one_image_take_no_longer_each(tmp_path: Path) -> None:
    rows = caption_rows(1)
    rows[0]["captions"] = [f"caption {number}" for number in range(20_000)]
    corpus = write_corpus(tmp_path / "c", rows)
    began = time.process_time()
    page = sheet(tmp_path, corpus)
    assert set(rows[0]["captions"]) <= set(page.texts)
    assert time.process_time() - began < 3, "comparing every caption with every other takes several times as long"


@pytest.mark.parametrize("task", ["vqa", "pairs", "entailment", "foils"])
def test_every_task_is_shown_in_full(task: str, tmp_path: Path) -> None:
    run("synth", "--task", task, "--count", 12, "--out", tmp_path / "c")
    page = sheet(tmp_path, tmp_path / "c")
    rows = read_rows(tmp_path / "c")
    assert len(page.images()) == 12 * (2 if task == "pairs" else 1)
    for row in rows:
        texts = {value for value in row.values() if isinstance(value, str)}
        assert texts <= set(page.texts)
    if task == "vqa":
        assert f"{rows[0]['answers'][0]} (×10)" in page.texts


def test_an_existing_file_is_kept(tmp_path: Path, fails: Callable[..., str]) -> None:
    corpus = write_corpus(tmp_path / "c", caption_rows(2))
    (tmp_path / "s.html").write_text("mine")
    assert "exists already" in fails("preview", corpus, "--out", tmp_path / "s.html")
    assert (tmp_path / "s.html").read_text() == "mine"
