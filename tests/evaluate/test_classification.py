"""Zero-shot classification, the linear probe and foils against plain references."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.__main__ import main as data_tools
from mvlm.__main__ import main
from mvlm.data.samples.foils import FoilDataset
from mvlm.data.samples.pictures import ClassFolder, Pictures
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from mvlm.evaluate import intervals, probe
from mvlm.evaluate.classification import evaluate_classification, read_templates, scores
from mvlm.evaluate.foils import evaluate_foils
from mvlm.evaluate.retrieval import SearchSettings
from mvlm.evaluate.settings import Settings
from mvlm.pretrained.runs import Loaded
from tests.conftest import eval_args
from tests.evaluate.tiny import CONFIG

CPU = torch.device("cpu")
SEARCH = SearchSettings(4, 0, 1.0)


@pytest.fixture
def folder(tmp_path):
    """Three classes of 1, 2 and 3 pictures, and files that must be ignored."""
    rng = np.random.default_rng(0)
    for count, name in enumerate(("a_cat", "dog", "star"), start=1):
        (tmp_path / name / "deeper").mkdir(parents=True)
        for number in range(count):
            picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            picture.save(tmp_path / name / "deeper" / f"{number}.PNG")
        (tmp_path / name / "notes.txt").write_text("")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_a_class_is_embedded_as_the_mean_of_its_sentences(model, tokenizer, folder):
    classes = ClassFolder(str(folder))
    assert (classes.names, classes.label_N.tolist()) == (["a cat", "dog", "star"], [0, 1, 1, 2, 2, 2])
    sentences = [template.format(name) for name in classes.names for template in ("{}", "the {} is red")]
    pictures = Pictures(classes.paths, sentences, tokenizer, 12, 16)
    result = evaluate_classification(model, pictures, classes.label_N, 3, SEARCH, CPU)
    with torch.no_grad():
        images = [model.project_image(model.encode_image(pictures.images([i])))[0].numpy() for i in range(6)]
        texts = [model.project_text(model.encode_text(*pictures.texts([i])))[0].numpy() for i in range(6)]
    means = [(texts[2 * c] + texts[2 * c + 1]) / np.linalg.norm(texts[2 * c] + texts[2 * c + 1]) for c in range(3)]
    right = np.array([np.argmax(image @ np.array(means).T) for image in images]) == classes.label_N
    assert result["top1"] == pytest.approx(right.mean())
    assert result["mean_per_class"] == pytest.approx(np.mean([right[:1].mean(), right[1:3].mean(), right[3:].mean()]))
    assert result["top5"] == 1 and result["chance"]["top1"] == pytest.approx(1 / 3)


def test_mean_per_class_gives_classes_equal_weight():
    label, rank = np.array([0] * 8 + [1] * 2), np.array([0] * 8 + [3, 7])
    result = scores(rank, label, 2)
    assert (result["top1"], result["top5"], result["mean_per_class"]) == (0.8, 0.9, 0.5)
    low, high = result["interval"]["top1"]
    assert low < 0.8 < high


def test_intervals_are_percentiles_over_resampled_pictures():
    """Each resample computed by itself. Some lack a class; one class has no pictures at all."""
    label, rank = np.array([0, 2, 2, 2, 3, 3]), np.array([0, 1, 0, 6, 5, 0])
    ends = scores(rank, label, 5)["interval"]
    rng, top5, per_class = np.random.default_rng(intervals.SEED), [], []
    for _ in range(intervals.RESAMPLES):
        drawn = rng.integers(6, size=6)
        top5.append(np.mean(rank[drawn] < 5))
        per_class.append(np.mean([np.mean(rank[drawn][label[drawn] == one] == 0) for one in set(label[drawn])]))
    assert ends["top5"] == pytest.approx(np.quantile(top5, [0.025, 0.975]))
    assert ends["mean_per_class"] == pytest.approx(np.quantile(per_class, [0.025, 0.975]))


def test_resamples_in_which_a_number_is_undefined_are_left_out_of_its_interval(monkeypatch):
    monkeypatch.setattr(intervals, "VALUES", 4)  # several chunks
    drawn_RN = []

    def share(weight_RN):
        drawn_RN.extend(weight_RN)
        with np.errstate(invalid="ignore"):
            return {"first": weight_RN[:, 0] / weight_RN[:, :2].sum(axis=1)}

    found = intervals.bootstrap(4, share)["first"]
    assert [drawn.sum() for drawn in drawn_RN] == [4] * intervals.RESAMPLES
    had = [drawn[0] / drawn[:2].sum() for drawn in drawn_RN if drawn[:2].any()]
    assert len(had) < intervals.RESAMPLES and found == pytest.approx(np.quantile(had, [0.025, 0.975]))


def test_mistakes_in_folders_and_templates_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="No folder at"):
        ClassFolder(str(folder / "none"))
    with pytest.raises(UserError, match="has 1 folders"):
        ClassFolder(str(folder / "dog"))
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no picture"):
        ClassFolder(str(folder))
    templates = tmp_path / "templates.txt"
    for content, message in (("a {} and {}\n", "must have one {}"), ("\n", "has no template")):
        templates.write_text(content)
        with pytest.raises(UserError, match=message):
            read_templates(str(templates))


def test_a_probe_needs_training_pictures_of_the_same_classes(folder, tmp_path_factory):
    asked = Settings((str(folder),), 0, SEARCH)
    with pytest.raises(UserError, match="give --train a folder"):
        probe.LinearProbeTask().run(None, asked, CPU)
    other = tmp_path_factory.mktemp("other")
    for name in ("a_cat", "dog", "moon"):
        (other / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(other / name / "0.png")
    with pytest.raises(UserError, match="differ in 'moon'"):
        probe.LinearProbeTask().run(None, replace(asked, data=(str(folder),), train=str(other)), CPU)


def test_a_probe_with_one_picture_per_class_does_not_claim_to_have_chosen_its_penalty(
    model, tokenizer, folder, tmp_path_factory
):
    one, saved = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(saved)
    loaded = Loaded(model, saved, CONFIG.blueprint, CONFIG.data, CONFIG.eval, step=7, fingerprint="f00")
    for picture in folder.rglob("0.PNG"):
        (one / picture.parts[-3]).mkdir()
        shutil.copy(picture, one / picture.parts[-3])
    for train, chosen, tried in (
        (folder, "best on every fifth training picture", "{0}, {0} of which it has learned from;"),
        (one, "the strongest, for no class has a", "{0} others;"),
    ):
        asked = Settings((str(folder),), 0, SEARCH, train=str(train))
        result = probe.LinearProbeTask().run(loaded, asked, CPU)
        assert chosen in result["protocol"] and f"tried on {tried.format(result['images'])}" in result["protocol"]


def test_a_limit_takes_pictures_of_all_classes(folder, capsys):
    assert ClassFolder(str(folder), limit=3).label_N.tolist() == [0, 1, 2]
    with pytest.raises(SystemExit):
        main(["evaluate", "classification", "--help"])
    assert "use only N images, evenly out of all classes" in " ".join(capsys.readouterr().out.split())


def test_the_gradient_is_zero_at_the_fitted_probe():
    """The gradient of the penalised cross-entropy, written out in numpy."""
    rng = np.random.default_rng(0)
    feature, label, strength = rng.normal(size=(60, 5)), rng.integers(0, 3, 60), 0.03
    weight = probe.fit(torch.from_numpy(feature), torch.from_numpy(label), 3, strength).numpy()
    logit = feature @ weight[:-1] + weight[-1]
    share = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
    residual = (share - np.eye(3)[label]) / len(label)
    assert np.abs(feature.T @ residual + strength * weight[:-1]).max() < 1e-7
    assert np.abs(residual.sum(axis=0)).max() < 1e-7


def test_the_probe_chooses_a_strong_penalty_for_noise_and_a_weak_one_for_signal():
    rng = np.random.default_rng(1)
    label = torch.arange(200) % 4
    noise = torch.from_numpy(rng.normal(size=(200, 30)))
    signal = torch.nn.functional.one_hot(label, 4).double() * 0.3 + noise[:, :4] * 0.02
    weight, weak = probe.fit_chosen(signal, label, 4)
    assert (probe.classify(signal, weight).argmax(1) == label).all()
    assert weak <= probe.STRENGTHS[-1]
    held = probe._held_out(torch.tensor([0] * 7 + [1] + [2] * 2))
    assert held.nonzero().flatten().tolist() == [1, 6, 9], "the only picture of a class is never held out"


@pytest.fixture(scope="module")
def foil_shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("foils") / "shards"
    assert data_tools(["synth", "--task", "foils", "--count", "12", "--seed", "4", "--out", str(out)]) == 0
    return out


def test_foil_accuracy_equals_scoring_every_row_alone(model, tokenizer, foil_shards):
    dataset = FoilDataset(Mixture([foil_shards], task="foils"), tokenizer, *eval_args(CONFIG))
    dataset.swapped[:4] = ["left/right"] * 4  # a kind may contain a slash, as those of icons do
    right = {"itc": [], "itm": []}
    with torch.no_grad():
        for row in range(12):
            image = model.encode_image(dataset.images([row]))
            itc, itm = [], []
            for sentence in (2 * row, 2 * row + 1):
                text, valid = dataset.texts([sentence])
                words = model.encode_text(text, valid)
                itc.append(float((model.project_image(image) * model.project_text(words)).sum()))
                no, yes = model.match(image, words, valid)[0].tolist()
                itm.append(yes - no)
            right["itc"].append(itc[0] > itc[1])
            right["itm"].append(itm[0] > itm[1])
    result = evaluate_foils(model, dataset, SEARCH, CPU)
    for scorer, of_rows in right.items():
        assert result["accuracy"][scorer]["all"] == pytest.approx(np.mean(of_rows))
        for kind in set(dataset.swapped):
            of_kind = [r for r, swapped in zip(of_rows, dataset.swapped, strict=True) if swapped == kind]
            assert result["accuracy"][scorer][kind] == pytest.approx(np.mean(of_kind))
    assert dataset.captions[0] == dataset.captions[3] and dataset.captions[1] == dataset.captions[2]


def test_a_scorer_that_ignores_the_image_is_at_chance_in_every_resample(model, tokenizer, foil_shards, monkeypatch):
    from mvlm.evaluate import foils

    dataset = FoilDataset(Mixture([foil_shards], task="foils"), tokenizer, *eval_args(CONFIG))
    dataset.swapped[:4] = ["rare"] * 4  # two sentences, missing from a third of the resamples
    monkeypatch.setattr(foils, "image_features", lambda *_: torch.ones(12, 16))
    result = evaluate_foils(model, dataset, SEARCH, CPU)
    assert "rare" in result["accuracy"]["itc"] and set(result["accuracy"]["itc"].values()) == {0.5}
    assert all(interval == [0.5, 0.5] for interval in result["interval"]["itc"].values())
