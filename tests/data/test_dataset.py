"""Samples: what they depend on, what is drawn for them, and how they are collated and evaluated."""

import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from made_shards import make_rows, stacked, write_shards
from PIL import Image

from mvlm.batch import IGNORE
from mvlm.config.schema import Model, Objectives, Run
from mvlm.data.images.decode import open_picture
from mvlm.data.images.transforms import eval_view
from mvlm.data.loading.collate import caption_id, collate, collate_pairs
from mvlm.data.loading.truncation import truncation_warning
from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from tests.conftest import eval_args, pair_args


def equal(one, other):
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))


def batch_of(dataset, samples):
    return collate(samples, stacked(samples), dataset.captions)


def test_a_sample_is_a_function_of_seed_position_and_row(dataset, mixture, tokenizer, config):
    again = PairDataset(mixture, tokenizer, *pair_args(config), (4, 4))
    assert equal(dataset.sample(3, 70), again.sample(3, 70))
    # Within an epoch, a place in the order changes only the position itself.
    assert equal(dataset.sample(3, 70), replace(dataset.sample(90, 70), position=3))
    other_seed = PairDataset(mixture, tokenizer, *pair_args(replace(config, run=Run(seed=8))), (4, 4))
    ours = [dataset.sample(3, row) for row in range(60, 70)]
    next_epoch = [dataset.sample(3 + len(dataset), row) for row in range(60, 70)]
    for others in (next_epoch, [other_seed.sample(3, row) for row in range(60, 70)]):
        for name in ("images", "patch_mask_N"):
            same = [np.array_equal(getattr(a, name), getattr(b, name)) for a, b in zip(ours, others, strict=True)]
            assert sum(same) < 7  # a quarter of the masks of 4 blocks are equal by chance


def test_each_epoch_masks_different_tokens_of_a_caption(mixture, tokenizer, with_data):
    dataset = PairDataset(mixture, tokenizer, *pair_args(with_data(caption="first")), (4, 4))
    long = [row for row in range(len(dataset)) if len(dataset.sample(0, row).text_L) > 10]
    epochs = [[dataset.sample(epoch * len(dataset), row).target_L for row in long] for epoch in range(2)]
    assert np.mean([np.array_equal(one, other) for one, other in zip(*epochs, strict=True)]) < 0.2


def test_the_fields_of_a_sample_have_the_configured_sizes(dataset):
    for row in range(40):
        sample = dataset.sample(row, row)
        assert sample.images[0].shape == (3, 32, 32) and sample.images[0].dtype == np.uint8
        assert len(sample.images) == 1
        assert sample.patch_mask_N.shape == (16,) and sample.patch_mask_N.sum() == 3 * 4  # ceil(.6 * 4) of 2 x 2
        assert len(sample.text_L) <= 14 and sample.text_L[0] == 0 and sample.text_L[-1] == 2
        masked = sample.target_L != IGNORE
        assert masked.sum() == max(1, round(0.3 * (len(sample.text_L) - 2)))
        assert not masked[[0, -1]].any()


def test_captions_are_tokenised_as_by_transformers(dataset, tokenizer, rows):
    for row in rows:
        for caption in row["captions"]:
            expected = tokenizer(caption, truncation=True, max_length=14)["input_ids"]
            assert dataset.captions.encode(caption).tolist() == expected


def test_cut_texts_are_reported(dataset, mixture, tokenizer, with_data, rows):
    captions = [caption for row in rows for caption in row["captions"]]
    lengths = [len(tokenizer(caption)["input_ids"]) for caption in captions]
    assert dataset.captions.whole_lengths(captions) == lengths and min(lengths) <= 14 < max(lengths)
    cut = sum(length > 14 for length in lengths)
    report = f"{cut} of {len(lengths)} are longer, up to {max(lengths)} tokens"
    assert f"at data.text_length = 14: in the first rows {report}" in truncation_warning(dataset)
    longer = PairDataset(mixture, tokenizer, *pair_args(with_data(text_length=max(lengths))), dataset.grid)
    assert truncation_warning(longer) == ""
    assert f"texts cut at 14 tokens ({cut} of" in EvalDataset(mixture, tokenizer, 14, 32).reported_length
    assert EvalDataset(mixture, tokenizer, max(lengths), 32).reported_length.endswith("tokens (none is longer)")


def test_spans_give_the_place_of_each_token(dataset):
    caption = "a dog near the red cat"
    text, spans = dataset.captions.encode(caption), dataset.captions.spans(caption)
    assert len(text) == len(spans)
    ordinary = ~dataset.captions.special(text)
    covered = sorted(i for (first, end), keep in zip(spans, ordinary, strict=True) if keep for i in range(first, end))
    assert covered == sorted(set(covered)) and {i for i, c in enumerate(caption) if c != " "} <= set(covered)
    assert all(span == (0, 0) for span, keep in zip(spans, ordinary, strict=True) if not keep)


def test_captions_can_be_tokenised_in_many_threads(dataset, rows):
    captions = [caption for row in rows for caption in row["captions"]] * 5
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(dataset.captions.encode, captions))
    assert all(np.array_equal(one, dataset.captions.encode(c)) for one, c in zip(threaded, captions, strict=True))


def test_the_caption_setting_decides_which_caption_an_epoch_uses(mixture, tokenizer, with_data, rows):
    row = next(i for i, r in enumerate(rows) if len(set(r["captions"])) == 3)
    encoded = [tokenizer(c, truncation=True, max_length=14)["input_ids"] for c in rows[row]["captions"]]

    def used(caption, epochs=60):
        dataset = PairDataset(mixture, tokenizer, *pair_args(with_data(caption=caption)), (4, 4))
        return [encoded.index(dataset.sample(e * len(dataset), row).text_L.tolist()) for e in range(epochs)]

    assert used("first", 6) == [0] * 6
    assert used("cycle", 7) == [0, 1, 2, 0, 1, 2, 0]
    drawn = np.bincount(used("draw"), minlength=3)
    assert drawn.min() > 8


def test_images_whose_captions_name_a_side_are_not_flipped(tmp_path, tokenizer, with_data):
    captions = ["a dog on the left", "Right: a cat", "the left-hand dog", "a copyright notice", "cleft dog"]
    rows = [row | {"captions": [caption]} for row, caption in zip(make_rows(5), captions, strict=True)]
    mixture = Mixture([write_shards(tmp_path / "s", rows)])
    plain = with_data(crop_scale=(1.0, 1.0), randaugment=(0, 0))
    dataset = PairDataset(mixture, tokenizer, *pair_args(plain), (4, 4))
    for row in range(5):
        whole = eval_view(open_picture(rows[row]["image"]), 32)
        views = [dataset.sample(e * 5, row).images[0] for e in range(30)]
        assert all((v == whole).all() or (v == whole[:, :, ::-1]).all() for v in views)
        mirrored = sum(not (v == whole).all() for v in views)
        assert mirrored == 0 if row < 3 else 5 < mirrored < 25
    still = with_data(crop_scale=(1.0, 1.0), randaugment=(0, 0), flip=False)
    off = PairDataset(mixture, tokenizer, *pair_args(still), (4, 4))
    whole = eval_view(open_picture(rows[4]["image"]), 32)
    assert all((off.sample(e * 5, 4).images[0] == whole).all() for e in range(30))


def test_two_views_of_an_image_are_cropped_independently(mixture, tokenizer, with_data, dataset):
    two = PairDataset(mixture, tokenizer, *pair_args(with_data(shared_view=False)), (4, 4)).sample(3, 70)
    one = dataset.sample(3, 70)
    assert (two.images[0] == one.images[0]).all()
    assert (two.images[-1] != two.images[0]).any()
    batch = collate_pairs([two], stacked([two]), 1, 14)
    assert batch.masked_image_BCHW is not batch.image_BCHW
    assert (batch.masked_image_BCHW[0].numpy() == two.images[-1]).all()


def test_blocks_that_do_not_tile_the_grid_are_refused_when_the_dataset_is_made(mixture, tokenizer, config):
    with pytest.raises(UserError, match="image_mask_block = 3"):
        PairDataset(mixture, tokenizer, *pair_args(replace(config, objectives=Objectives(image_mask_block=3))), (4, 4))


def test_a_bad_image_in_an_evaluation_is_reported_with_shard_row_and_key(tmp_path, tokenizer, config):
    rows = make_rows(6)
    rows[4]["image"] = b"<html>"
    folder = write_shards(tmp_path / "s", rows, shard_rows=4)
    with pytest.raises(UserError, match=r"000001\.arrow row 0 \(key 'k00004'\).*checksum differs"):
        EvalDataset(Mixture([folder]), tokenizer, *eval_args(config)).images(range(6))
    rows[4]["crc32"] = zlib.crc32(b"<html>")
    folder = write_shards(tmp_path / "t", rows, shard_rows=4)
    with pytest.raises(UserError, match=r"row 0 \(key 'k00004'\).*not an image"):
        EvalDataset(Mixture([folder]), tokenizer, *eval_args(config)).images(range(6))


def test_collate_pads_to_a_multiple_of_eight_within_the_limit(dataset):
    samples = [dataset.sample(i, i) for i in range(30)]
    short = [s for s in samples if len(s.text_L) <= 8]
    assert short and batch_of(dataset, short).text_BL.shape[1] == 8
    batch = batch_of(dataset, samples)
    assert batch.text_BL.shape == (30, 14)  # the limit, though the next multiple is 16
    assert batch.masked_image_BCHW is batch.image_BCHW
    for b, sample in enumerate(samples):
        length = len(sample.text_L)
        assert batch.valid_BL[b].tolist() == [True] * length + [False] * (14 - length)
        for name, fill in (("text", 1), ("masked_text", 1), ("target", IGNORE)):
            row = getattr(batch, f"{name}_BL")[b].tolist()
            assert row == getattr(sample, f"{name}_L").tolist() + [fill] * (14 - length)
        assert (batch.image_BCHW[b].numpy() == sample.images[0]).all()
        assert (batch.patch_mask_BN[b].numpy() == sample.patch_mask_N).all()
    assert batch.position_B.tolist() == batch.image_id_B.tolist() == list(range(30))
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    types = {name: tensor.dtype for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    assert types["image_BCHW"] == torch.uint8 and types["patch_mask_BN"] == types["valid_BL"] == torch.bool
    assert {types[n] for n in types if n.endswith(("_B", "text_BL", "target_BL"))} == {torch.int64}


def test_caption_ids_are_equal_only_for_equal_tokens(dataset):
    texts = [tuple(dataset.sample(i, i).text_L.tolist()) for i in range(len(dataset))]
    ids = {text: caption_id(np.array(text)) for text in texts}
    assert len(set(ids.values())) == len(set(texts))
    assert caption_id(np.array([0, 5, 2])) == caption_id(np.array([0, 5, 2], dtype=np.int32))
    assert caption_id(np.array([0, 5, 2])) == -716961770349740252  # the same in every process


def test_evaluation_reads_every_caption_and_plain_images(mixture, tokenizer, config, rows):
    dataset = EvalDataset(mixture, tokenizer, *eval_args(config))
    assert len(dataset) == len(rows)
    assert dataset.captions == [caption for row in rows for caption in row["captions"]]
    assert dataset.owner.tolist() == [i for i, row in enumerate(rows) for _ in row["captions"]]
    images = dataset.images(range(5, 9))
    assert images.shape == (4, 3, 32, 32) and images.dtype == torch.uint8
    for image, row in zip(images, rows[5:9], strict=True):
        with Image.open(io.BytesIO(row["image"])) as source:
            plain = source.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        assert np.abs(image.numpy().astype(int) - np.asarray(plain).transpose(2, 0, 1)).mean() < 1
    text_BL, valid_BL = dataset.texts([3, 0])
    assert text_BL[0][valid_BL[0]].tolist() == tokenizer(dataset.captions[3], truncation=True, max_length=14).input_ids


def test_evaluation_can_be_cut_short(mixture, tokenizer, config, rows):
    dataset = EvalDataset(mixture, tokenizer, *eval_args(replace(config, model=Model(image_size=16))), limit=7)
    assert len(dataset) == 7 and dataset.owner.max() == 6
    assert len(dataset.captions) == sum(len(row["captions"]) for row in rows[:7])
    assert dataset.images([6]).shape == (1, 3, 16, 16)
    assert len(EvalDataset(mixture, tokenizer, *eval_args(config), limit=10**6)) == len(rows)
