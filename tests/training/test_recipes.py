"""The shipped recipes make as many updates as the published ones, given the published sizes of the data sets."""

from __future__ import annotations

import re

import pytest

from benchmarks.claim.cost import PAPER
from mvlm.config.load import load_config
from mvlm.training.schedule import schedule_steps
from tests.conftest import ROOT

COCO, VISUAL_GENOME, SBU, CC3M = 566_747, 769_000, 860_000, 2_950_000
"""Pairs as ALBEF gives them (arXiv 2107.07651, table 6: 567 k, 769 k, 860 k, 2.95 M); COCO's: Karpathy's split."""

PAIRS = {
    "base_4m": COCO + VISUAL_GENOME + SBU + CC3M,
    "ablation/all": COCO + CC3M // 2,
    "retrieval_coco": COCO,
    "retrieval_flickr30k": 145_000,  # 29,000 images of five sentences (Karpathy's split)
    "vqa": 443_757 + 214_354 + 485_000,  # train2014, val2014 (Goyal et al., 2017), Visual Genome (arXiv 1707.07998)
    "nlvr2": 86_373,  # Suhr et al., 2019
    "entailment": 529_527,  # Xie et al., 2019
}
"""Pairs, questions or sentences of an epoch, by recipe."""

ALBEF_DROPS = {
    "retrieval_coco": 11_065,
    "retrieval_flickr30k": 5_660,
    "nlvr2": 6_740,
    "entailment": 10_340,
}
"""Updates of ALBEF's scripts with the same epochs and batch; they drop each epoch's last, incomplete batch."""


def updates(recipe: str, pairs: int = 0) -> int:
    config = load_config(ROOT / f"mvlm/configs/{recipe}.toml")
    return schedule_steps(config.train, config.optim, pairs or PAIRS[recipe])[0]


def rows() -> dict[str, list[str]]:
    """The table of docs/method.md, by recipe."""
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| \[`(\S+)`\]\(\S+\) \| (.*) \|$", text, re.MULTILINE)
    return {recipe: [cell.strip() for cell in cells.split("|")] for recipe, cells in lines}


@pytest.mark.parametrize("recipe", PAIRS)
def test_the_table_has_the_recipes_numbers(recipe: str) -> None:
    config = load_config(ROOT / f"mvlm/configs/{recipe}.toml")
    expected = [
        f"{PAIRS[recipe]:,}",
        f"{config.train.epochs:g}",
        f"{config.train.global_batch}",
        f"{updates(recipe):,}",
    ]
    assert rows()[recipe][:4] == expected
    assert rows()[recipe][4] == (f"{ALBEF_DROPS[recipe]:,}" if recipe in ALBEF_DROPS else "")


@pytest.mark.parametrize("recipe", ALBEF_DROPS)
def test_a_recipe_differs_from_albefs_by_the_last_batches_of_epochs_alone(recipe: str) -> None:
    config = load_config(ROOT / f"mvlm/configs/{recipe}.toml")
    complete = PAIRS[recipe] // config.train.global_batch * int(config.train.epochs)
    assert complete == ALBEF_DROPS[recipe]
    assert 0 <= updates(recipe) - complete <= config.train.epochs
    assert updates(recipe) / complete - 1 < (0.0012 if recipe == "nlvr2" else 0.001)


ABLATIONS = sorted((ROOT / "mvlm/configs/ablation").glob("*.toml"))


def test_all_ablations_have_the_length_that_is_stated_of_them() -> None:
    wanted = updates("ablation/all")
    assert load_config(ROOT / "mvlm/configs/ablation/all.toml").train.epochs == 30
    for path in ABLATIONS:
        assert updates(f"ablation/{path.stem}", PAIRS["ablation/all"]) == wanted, path
        assert f"30 epochs = {wanted:,} updates" in path.read_text(encoding="utf-8"), path
    texts = {
        path: path.read_text(encoding="utf-8") for path in (*ROOT.glob("docs/*.md"), *ABLATIONS, ROOT / "README.md")
    }
    stated = [
        (path, said) for path, text in texts.items() for said in re.findall(r"30 epochs = ([\d,]+) updates", text)
    ]
    assert {said for _, said in stated} == {f"{wanted:,}"} and len(stated) > len(ABLATIONS)
    commands = [said for text in texts.values() for said in re.findall(r"train\.steps=(\d{5,})", text)]
    assert commands and set(commands) == {f"{wanted}"}
    assert PAPER["ablation"] == pytest.approx(30 * PAIRS["ablation/all"], rel=0.01)
    assert PAPER["4 M"] == pytest.approx(50 * PAIRS["base_4m"], rel=0.01)


FINE_TUNED = ("retrieval_coco", "retrieval_flickr30k", "vqa", "nlvr2", "entailment")


@pytest.mark.parametrize("recipe", ["base", *PAIRS, *(f"ablation/{path.stem}" for path in ABLATIONS)])
def test_recipes_of_the_paper_start_from_albefs_weights_and_augment_as_it_does(recipe: str) -> None:
    """The image encoder is pretrained on ImageNet-1k; crops and operations are those of ALBEF's dataset/__init__.py."""
    config = load_config(ROOT / f"mvlm/configs/{recipe}.toml")
    assert (config.model.vision, config.model.vision_weights) == ("deit_base_patch16_224.fb_in1k", "pretrained")
    assert config.data.crop_scale == ((0.5, 1.0) if recipe in FINE_TUNED else (0.2, 1.0))
    assert (config.data.randaugment, config.data.randaugment_kind, config.data.flip) == ((2, 7), "albef", True)


@pytest.mark.parametrize("recipe", ["small", "large", "huge", "giant"])
def test_a_recipe_with_weights_pretrained_on_more_images_says_so(recipe: str) -> None:
    text = (ROOT / f"mvlm/configs/{recipe}.toml").read_text(encoding="utf-8")
    assert re.search(r"^vision = .*to be named in a comparison$", text, re.MULTILINE)
