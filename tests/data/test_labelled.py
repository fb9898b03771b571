"""Fine-tuning tasks use the same loader: every column as pyarrow reads it, pairs of images, labels."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_tools.__main__ import main as data_tools_main
from mvlm.data.images.decode import open_picture
from mvlm.data.images.transforms import eval_view
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.sampler import make_sampler, order_of
from mvlm.data.samples.labelled import LabelledDataset
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.schema import LABELS, OWN_COLUMNS
from tests.conftest import labelled_args

TASKS = sorted(OWN_COLUMNS)
ROWS = 48


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("tasks")
    for task in TASKS:
        words = ["synth", "--task", "pairs" if task == "nlvr2" else task, "--count", str(ROWS)]
        assert data_tools_main([*words, "--out", str(out / task)]) == 0
    return {task: out / task for task in TASKS}


def rows_of(folder):
    """The rows as pyarrow reads them."""
    return [row for path in sorted(folder.glob("*.arrow")) for row in pa.ipc.open_file(path).read_all().to_pylist()]


def opened(corpora, task):
    return Mixture([corpora[task]], task=task)


@pytest.fixture
def plain(with_data):
    return with_data(crop_scale=(1.0, 1.0), flip=False, randaugment=(0, 0), text_length=40)


@pytest.mark.parametrize("task", TASKS)
def test_columns_equal_those_of_to_pylist(corpora, task):
    mixture = opened(corpora, task)
    for number, row in enumerate(rows_of(corpora[task])):
        content = mixture.row(number)
        own = {field.name: row[field.name] for field in OWN_COLUMNS[task]}
        assert (content.own, str(content.own)) == (own, str(own)), "answers are compared with True, not 1"
        images = [(row["image"], row["crc32"])] + ([(row["image2"], row["crc32_2"])] if task == "nlvr2" else [])
        assert content.key == row["key"]
        assert [(bytes(encoded.data), encoded.crc32) for encoded in content.encoded] == images


@pytest.mark.parametrize("task", TASKS)
def test_samples_have_the_images_texts_and_label_of_their_row(corpora, task, tokenizer, plain):
    answers = ["no", "yes", "red", "blue"]
    dataset = LabelledDataset(opened(corpora, task), task, tokenizer, *labelled_args(plain), answers)
    for number, row in enumerate(rows_of(corpora[task])):
        sample = dataset.sample(number, number)
        images = [row["image"], *([row["image2"]] if task == "nlvr2" else [])]
        assert len(sample.images) == len(images) == dataset.image_shape[0]
        for view, encoded in zip(sample.images, images, strict=True):
            assert (view == eval_view(open_picture(encoded), 32)).all()
        texts = {"vqa": ["question"], "foils": ["caption", "foil"]}.get(task, ["sentence"])
        expected = [tokenizer(row[name], truncation=True, max_length=40)["input_ids"] for name in texts]
        assert [text.tolist() for text in sample.texts_TL] == expected
        if task == "vqa":
            shares = [min(0.3 * row["answers"].count(answer), 1.0) for answer in answers]
            assert sample.label == pytest.approx(np.array(shares, dtype=np.float32))
        elif task == "entailment":
            assert LABELS[sample.label] == row["label"]
        else:
            assert sample.label == int(row.get("label", 0))


def test_the_two_images_of_a_pair_are_augmented_independently(corpora, tokenizer, with_data, monkeypatch):
    dataset = LabelledDataset(opened(corpora, "nlvr2"), "nlvr2", tokenizer, *labelled_args(with_data()), ())
    assert (dataset.sample(0, 0).images == dataset.sample(0, 0).images).all()
    content = dataset.mixture.row(0)
    monkeypatch.setattr(dataset.mixture, "row", lambda row: content._replace(encoded=2 * content.encoded[:1]))
    left, right = dataset.sample(0, 0).images
    assert (left != right).any()


@pytest.mark.parametrize("task", TASKS)
def test_the_loader_gives_the_same_batches_in_both_modes(corpora, task, tokenizer, config):
    mixture = opened(corpora, task)
    dataset = LabelledDataset(mixture, task, tokenizer, *labelled_args(config), ["no", "yes"])
    draws = make_sampler(mixture, 1, [order_of(config.data)])
    options = {"global_batch": 12, "micro_batch": 6, "workers": 2}
    modes = ("threads", "processes") if task == "nlvr2" else ("threads",)
    streams = []
    for mode in modes:
        with Loader(dataset, draws, worker_mode=mode, **options) as loader:
            streams.append([batch for batches in itertools.islice(loader, 4) for batch in batches])
    batch = streams[0][0]
    views, sentences = 2 if task == "nlvr2" else 1, 2 if task == "foils" else 1
    assert batch.image_VBCHW.shape == (views, 6, 3, 32, 32) and len(batch) == 6
    assert batch.text_TBL.shape[:2] == batch.valid_TBL.shape[:2] == (sentences, 6)
    assert batch.label_B.shape == ((6, 2) if task == "vqa" else (6,))
    assert torch.cat([b.row_B for b in streams[0]]).sort().values.tolist() == list(range(ROWS))
    for name in vars(batch):
        assert all(
            torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(streams[0], streams[-1], strict=True)
        )
    for b in range(6):
        sample = dataset.sample(int(batch.position_B[b]), int(batch.row_B[b]))
        for t, text in enumerate(sample.texts_TL):
            assert batch.text_TBL[t, b][batch.valid_TBL[t, b]].tolist() == text.tolist()
        assert (batch.image_VBCHW[:, b].numpy() == np.stack(sample.images)).all()
