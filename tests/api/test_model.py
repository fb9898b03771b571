"""A model in Python against its network, called directly with one item at a time."""

from __future__ import annotations

import copy
import dataclasses
import io
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig

import mvlm
from mvlm.api.images import view
from mvlm.api.model import TrainedModel
from mvlm.config.schema import Task
from mvlm.errors import UserError
from mvlm.export.folder import export_folder
from mvlm.export.written import export_run
from mvlm.search.build import build_index
from tests.evaluate.tiny import CONFIG
from tests.export.conftest import write_run

TEXTS = ["a red circle", "a blue star top left", "two"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), CONFIG)


@pytest.fixture(scope="module")
def model(run: Path) -> TrainedModel:
    return mvlm.load(run, "cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(3)
    paths = [folder / f"{name}.png" for name in "abc"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return paths


def cut_short(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()[:-200]))


@torch.no_grad()
def features(model: TrainedModel, path: Path, text: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The features of one image and one text, each computed alone, and the probability of a match."""
    network = model.network
    image_1SD = network.encode_image(torch.from_numpy(view(path, CONFIG.model.image_size))[None])
    text_1L, valid_1L = model._tokens.batch([text])
    text_1LD = network.encode_text(text_1L, valid_1L)
    match = network.match(image_1SD, text_1LD, valid_1L)[0].softmax(-1)[1]
    return network.project_image(image_1SD)[0], network.project_text(text_1LD)[0], match


def test_vectors_similarities_and_matches_are_the_networks_own(model: TrainedModel, paths: list[Path]) -> None:
    alone = [features(model, path, text) for path, text in zip(paths, TEXTS, strict=True)]
    found = model.encode(paths, TEXTS, batch=2)
    assert found.images is not None and found.texts is not None
    torch.testing.assert_close(found.images, torch.stack([image for image, _, _ in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.texts, torch.stack([text for _, text, _ in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.similarity(paths, TEXTS), found.images @ found.texts.T, atol=1e-5, rtol=0)
    matches = model.match(paths, TEXTS, batch=2)
    torch.testing.assert_close(matches, torch.stack([match for _, _, match in alone]), atol=1e-5, rtol=0)
    assert model.encode(texts="a").images is None and model.match(paths, "two").shape == (3,)
    assert torch.equal(model.similarity((path for path in paths), iter(TEXTS)), model.similarity(paths, TEXTS))


def test_an_image_is_the_same_in_every_form(model: TrainedModel, paths: list[Path]) -> None:
    with Image.open(paths[0]) as picture:
        array = np.asarray(picture)
        forms = [paths[0], str(paths[0]), picture.copy(), array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    vectors = model.encode(forms).images
    assert vectors is not None and all(torch.equal(vector, vectors[0]) for vector in vectors)
    batch = np.stack([array] * len(forms))  # equally many: on some CPUs, others round differently
    assert torch.equal(model.encode(batch).images, vectors)  # type: ignore[arg-type]
    grey = array[:, :, 0]
    of_grey = model.encode([grey, grey[:, :, None], Image.fromarray(grey), torch.from_numpy(grey.copy())]).images
    assert of_grey is not None and all(torch.equal(vector, of_grey[0]) for vector in of_grey)


def test_masked_words_and_patches_are_reconstructed(model: TrainedModel, paths: list[Path]) -> None:
    filled = model.fill("a [MASK] circle", paths[0], top=3)
    assert filled.text == f"a {filled.guesses[0][0][0]} circle" and len(filled.guesses[0]) == 3
    shares = [share for _, share in filled.guesses[0]]
    assert shares == sorted(shares, reverse=True)
    assert model.fill("a [MASK] circle").guesses != filled.guesses
    rows, columns = model.network.grid
    mask_BN = np.zeros((2, rows * columns), bool)
    mask_BN[:, 1] = True
    first, second = model.reconstruct(paths[:2], "a red circle", mask_BN)
    assert first.caption == second.caption == "a red circle"
    changed = (first.original != first.with_text).any(-1)
    patch = first.original.shape[0] // rows
    assert changed[:patch, patch : 2 * patch].any()
    changed[:patch, patch : 2 * patch] = False
    assert not changed.any()  # nothing but the masked patch


def test_a_call_that_the_model_was_not_trained_for_causes_a_warning(
    model: TrainedModel, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives = dataclasses.replace(model.network.objectives, itm=0, image=0, text=0)
    monkeypatch.setattr(model.network, "objectives", objectives)
    calls = (
        lambda: model.match(paths[0], "a"),
        lambda: model.reconstruct(paths[0], "a"),
        lambda: model.fill("a [MASK]"),
    )
    for call, objective in zip(calls, ("itm", "image", "text"), strict=True):
        with pytest.warns(UserWarning, match=rf"may know nothing about .*objectives.{objective} = 0"):
            call()


def test_truncated_texts_cause_a_warning(model: TrainedModel, paths: list[Path]) -> None:
    long = "a red circle " * 20
    calls = (
        lambda: model.encode(texts=["a", long]),
        lambda: model.similarity(paths, ["a", long]),
        lambda: model.match(paths[:2], ["a", long]),
        lambda: model.reconstruct(paths[:2], ["a", long]),
    )
    for call in calls:
        with pytest.warns(UserWarning, match="reads 12 tokens of a text: 1 of 2 are longer"):
            call()
    with pytest.warns(UserWarning, match="1 of 1 are longer"):
        model.fill(f"a [MASK] {long}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(texts=["a red circle"])


def test_an_exported_folder_gives_equal_features(
    model: TrainedModel, run: Path, paths: list[Path], tmp_path: Path
) -> None:
    export_folder(run, tmp_path / "exported", "a card")
    exported = mvlm.load(tmp_path / "exported", "cpu")
    for mine, theirs in zip(model.encode(paths, TEXTS), exported.encode(paths, TEXTS), strict=True):
        assert torch.equal(mine, theirs)
    assert (model.step, exported.step) == (7, None)
    with pytest.raises(UserError, match=r"Only the run that made corpus\.index can search it"):
        exported.search("corpus.index", "a red circle")


def test_an_export_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    tuned = write_run(tmp_path / "run", dataclasses.replace(CONFIG, task=Task(name="vqa")))
    export_folder(tuned, tmp_path / "vqa", "a card")
    with pytest.raises(UserError, match=r"vqa was exported from a run fine-tuned .*by mvlm\.load_finetuned"):
        mvlm.load(tmp_path / "vqa", "cpu")
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match=r"bert is not a model \(it is of the kind 'bert'\): give a run folder"):
        mvlm.load(tmp_path / "bert", "cpu")


@pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_works_whatever_the_default_dtype(
    model: TrainedModel, run: Path, paths: list[Path], scenes: Path, tmp_path: Path, default: torch.dtype
) -> None:
    torch.set_default_dtype(default)
    try:
        loaded = mvlm.load(run, "cpu")
        loaded.index(scenes / "eval", tmp_path / "index")
        assert [hit.match for hit in loaded.search(tmp_path / "index", "a red circle")]
        found = loaded.encode(paths, TEXTS)
    finally:
        torch.set_default_dtype(torch.float32)
    for mine, usual in zip(found, model.encode(paths, TEXTS), strict=True):
        torch.testing.assert_close(mine, usual, atol=1e-6, rtol=0)


def test_a_model_is_loaded_whatever_the_default_device(
    model: TrainedModel, run: Path, paths: list[Path], tmp_path: Path
) -> None:
    export_run(run, tmp_path / "exported")
    torch.set_default_device("meta")
    try:
        loaded = [mvlm.load(each, "cpu") for each in (run, tmp_path / "exported")]
    finally:
        torch.set_default_device(None)
    for each in loaded:
        for mine, usual in zip(each.encode(paths, TEXTS), model.encode(paths, TEXTS), strict=True):
            torch.testing.assert_close(mine, usual, atol=1e-6, rtol=0)


def test_an_index_is_searched_by_words_and_by_pictures(run: Path, scenes: Path, tmp_path: Path) -> None:
    model = mvlm.load(run, "cpu")
    assert model._loaded
    build_index(model._loaded, [str(scenes / "eval")], tmp_path / "index", torch.device("cpu"))
    rows = mvlm.open(scenes / "eval")
    (found, *_) = model.search(tmp_path / "index", rows[4].image, top=2)
    assert found.key == rows[4].key and found.similarity == pytest.approx(1, abs=1e-5)
    similarity = model.similarity([row.image for row in rows], "a red circle")[:, 0]
    by_words = model.search(tmp_path / "index", "a red circle", top=3, rerank=0)
    assert [each.image for each in by_words] == similarity.argsort(descending=True)[:3].tolist()
    with pytest.warns(UserWarning, match="1 of 1 are longer"):
        model.search(tmp_path / "index", "a red circle " * 20)


def test_a_rebuilt_index_is_opened_again(run: Path, scenes: Path, tmp_path: Path) -> None:
    model, out = mvlm.load(run, "cpu"), tmp_path / "index"
    model.index(scenes / "eval", out)
    count = len(mvlm.open(scenes / "eval"))
    assert len(model.search(out, "a red circle", top=10_000, rerank=0)) == count
    both = [scenes / "eval", scenes / "train"]
    model.index(both, out)
    assert len(model.search(out, "a red circle", top=10_000, rerank=0)) == len(mvlm.open(both))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_model_that_has_searched_finds_the_same(
    run: Path, scenes: Path, tmp_path: Path, copied: Callable
) -> None:
    model, out = mvlm.load(run, "cpu"), tmp_path / "index"
    model.index(scenes / "eval", out)
    found = model.search(out, "a red circle")
    assert copied(model).search(out, "a red circle") == found == model.search(out, "a red circle")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda m, p: m.encode(np.zeros((4, 4, 3))), "float64 and shape"),
        (lambda m, p: m.encode(np.zeros((0, 4, 3), np.uint8)), "4 x 0 pixels shows nothing"),
        (lambda m, p: m.encode(Image.new("RGB", (0, 0))), "0 x 0 pixels shows nothing"),
        (lambda m, p: m.encode(3), "int is not an image"),
        (lambda m, p: m.encode("nowhere.jpg"), "No picture at nowhere.jpg"),
        (lambda m, p: m.encode([]), "give at least one"),
        (lambda m, p: m.encode(p, batch=0), "give a `batch` of 1 or more"),
        (lambda m, p: m.encode(p, batch=2.5), "2.5 cannot be `batch`"),
        (lambda m, p: m.match(p, "one", batch="3"), "'3' cannot be `batch`"),
        (lambda m, p: m.similarity(None, "one"), "NoneType is not an image"),
        (lambda m, p: m.similarity(p, None), "NoneType is not a text"),
        (lambda m, p: m.encode(texts=3), "int is not a text"),
        (lambda m, p: m.encode(texts=b"bytes"), "bytes is not a text"),
        (lambda m, p: m.encode(texts="\udcff"), "is not Unicode"),
        (lambda m, p: m.encode(cut_short(p[0])), r"truncated.*: leave it out"),
        (lambda m, p: m.to("cuda:99"), 'no device "cuda:99" here'),
        (lambda m, p: m.encode(b"bytes"), "bytes is not an image"),
        (lambda m, p: m.encode(texts=["a", None]), "NoneType is not a text"),
        (lambda m, p: m.search("an index", "a", top=0), "give a `top` of 1 or more"),
        (lambda m, p: m.search("an index", "a", rerank=-1), "give a `rerank` of 0 or more"),
        (lambda m, p: m.search(None, "a"), "None cannot be `index`: give a path"),
        (lambda m, p: m.match(p, ["one", "two"]), "3 images and 2 sentences cannot be paired"),
        (lambda m, p: m.fill("no mask", p[0]), "masks no word: write \\[MASK\\]"),
        (lambda m, p: m.fill("a [MASK]", top=0), "give a `top` of 1 or more"),
        (lambda m, p: m.fill("a [MASK]", top=2.5), "2.5 cannot be `top`"),
        (lambda m, p: m.fill(3), "int is not a text"),
        (lambda m, p: m.fill(["a [MASK]"]), "list is not a text"),
        (lambda m, p: m.reconstruct([], []), "0 images and 0 sentences"),
        (lambda m, p: m.fill("[MASK] " * 100, p[0]), "a shorter sentence"),
        (lambda m, p: m.reconstruct(p, "one", np.zeros((3, 2), bool)), "does not fit"),
        (lambda m, p: m.reconstruct(p, "one", "mask"), "`masked` cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence(model: TrainedModel, paths: list[Path], ask: Callable, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ask(model, paths)


def test_a_path_that_is_not_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match='no device "gpu" here'):
        mvlm.load(tmp_path, "gpu")
    with pytest.raises(UserError, match="nowhere"):
        mvlm.load(tmp_path / "nowhere")
    for model in (None, 3, [tmp_path], ""):
        with pytest.raises(UserError, match=re.escape(f"{model!r} cannot be `model`: give a path")):
            mvlm.load(model)
        with pytest.raises(UserError, match=re.escape(f"{model!r} cannot be `run`: give a path")):
            mvlm.load_finetuned(model)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="No checkpoint at runs/mine"):  # without asking the hub
        mvlm.load("runs/mine")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not a model"):
        mvlm.load(tmp_path)


IMPORTED = """
import sys
finders = [*sys.meta_path]
import mvlm
mvlm.__version__
assert not {"torch", "numpy", "transformers", "PIL", "pyarrow"} & set(sys.modules)
assert sys.meta_path == finders and "load" in dir(mvlm)
"""


def test_importing_mvlm_imports_nothing_large_and_installs_no_hook() -> None:
    subprocess.run([sys.executable, "-c", IMPORTED], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = mvlm.lode  # type: ignore[attr-defined]
