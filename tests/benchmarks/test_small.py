"""benchmarks/small: its linear reference against numpy, the packages that it reads, and its arms' settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.small import ridge
from benchmarks.small.arms import ARMS, RANDOM
from benchmarks.small.cell import COMMON, TOML
from benchmarks.small.corpora import KINDS, Drawing
from benchmarks.small.table import table
from mvlm.config.load import load_config

TITLE, SUBJECT = "<dc:title>A &amp; B</dc:title>", "<dc:subject><rdf:li>two</rdf:li></dc:subject>"
SVG = f'<svg xmlns="http://www.w3.org/2000/svg">{TITLE}{SUBJECT}</svg>'


def test_the_map_is_that_of_penalised_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    image_ND, caption_CE = (torch.randn(rows, 5, generator=generator).double() for rows in (30, 60))
    owner_C = torch.arange(60) % 30
    _, text_mean, weight = ridge._fitted((image_ND, caption_CE, owner_C), 7.0)
    x = image_ND.numpy() - image_ND.numpy().mean(0)
    text = (caption_CE[:30] + caption_CE[30:]).numpy() / 2
    stacked, targets = np.vstack([x, np.sqrt(7.0) * np.eye(5)]), np.vstack([text - text.mean(0), np.zeros((5, 5))])
    assert np.allclose(weight.numpy(), np.linalg.lstsq(stacked, targets, rcond=None)[0])
    assert np.allclose(text_mean.numpy(), text.mean(0))


def test_recall_counts_any_caption_of_an_image() -> None:
    """Captions equal their images, except that the two captions of one image are its exact opposite."""
    image_ND = torch.eye(40)
    caption_CE = torch.cat([torch.eye(40), torch.eye(40)])
    caption_CE[[0, 40]] *= -1
    fitted = torch.zeros(40), torch.zeros(40), torch.eye(40)
    to_text, to_image = ridge._recalls(fitted, (image_ND, caption_CE, torch.arange(40).repeat(2)))
    assert to_text == pytest.approx(39 / 40) and to_image == pytest.approx(78 / 80)


def read(name: str, package: Path) -> list[Drawing]:
    reader = KINDS[name].read
    assert reader is not None
    return list(reader(package))


def test_names_drawings_and_captions_are_read_from_packages(tmp_path: Path) -> None:
    (tmp_path / "package/svg").mkdir(parents=True)
    (tmp_path / "package/svg/car-side.svg").write_text(SVG)
    icon = {"name": "car-side", "aliases": ["auto-mobile"], "tags": ["Travel"]}
    (tmp_path / "package/meta.json").write_text(json.dumps([icon]))
    assert read("icons", tmp_path) == [
        ("car side", SVG.encode(), ["car side", "car side: auto mobile, Travel"]),
    ]
    icons = {"icons": {"big-axe": {"body": "<path/>"}}, "width": 9, "height": 8}
    (tmp_path / "package/icons.json").write_text(json.dumps(icons))
    [(name, content, captions)] = read("pictograms", tmp_path)
    assert (name, captions) == ("big axe", ["big axe"]) and b'viewBox="0 0 9 8"' in content
    (tmp_path / "stamp.txt").write_text("A red apple.\nfr.utf8=Une pomme.\n")
    (tmp_path / "stamp.png").write_bytes(b"png")
    (tmp_path / "alone.txt").write_text("No picture.\n")
    assert read("stamps", tmp_path) == [("A red apple.", b"png", ["A red apple."])]
    assert read("clipart", tmp_path)[0] == ("A & B", SVG.encode(), ["A & B", "A & B: two"])


@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if not arm.pretrained])
def test_a_run_accepts_the_settings_of_every_arm(arm: str) -> None:
    assert sum(share for share, _ in ARMS[arm].stages) == pytest.approx(1)
    for _, settings in ARMS[arm].stages:
        config = load_config(TOML, [*COMMON, "data.eval=held_out", *RANDOM, *ARMS[arm].settings, *settings])
        assert config.objectives.itc == 1 and config.data.epoch == "images"


def test_the_table_shows_each_arm_once_with_its_seeds() -> None:
    cells = [
        {"corpus": "emoji", "arm": "itc", "seconds": 60, "seed": seed, "cpu_s": 70, "chosen": {"last": 0.2}}
        | {place: {"image_to_text_itc": share, "text_to_image_itc": share / 2} for place in ("last", "best")}
        for seed, share in enumerate((0.4, 0.5))
    ]
    rows = table(cells).splitlines()[2:]
    assert len(rows) == 1 and "| 2 | 20.0 | 45.0 (40.0 to 50.0) | 22.5 (20.0 to 25.0) |" in rows[0]
