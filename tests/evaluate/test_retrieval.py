"""Retrieval against scoring every pair alone, and on several ranks."""

import os
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.shards.mixture import Mixture
from mvlm.evaluate import intervals, memory
from mvlm.evaluate.reconstruction import evaluate_reconstruction
from mvlm.evaluate.retrieval import SearchSettings, evaluate_retrieval, retrieve
from mvlm.runtime import dist
from tests.conftest import eval_args, free_port
from tests.evaluate.tiny import CAPTIONS, CONFIG, make_model, make_shards, make_tokenizer

CPU = torch.device("cpu")
SMALLEST_GB = 1e-5  # with `cheap_passes`, room for two pairs, two texts and 69 similarities at a time


@contextmanager
def cheap_passes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "PASS_COPIES", 1)
        yield


@torch.no_grad()
def every_pair(model, dataset):
    """Similarity and log-odds of a match, images x captions, each pair computed alone."""
    similarity, odds = (np.zeros((len(dataset), len(dataset.captions)), dtype=np.float32) for _ in range(2))
    for i in range(len(dataset)):
        image = model.encode_image(dataset.images([i]))
        for c in range(len(dataset.captions)):
            text, valid = dataset.texts([c])
            words = model.encode_text(text, valid)
            similarity[i, c] = (model.project_image(image) * model.project_text(words)).sum()
            no, yes = model.match(image, words, valid)[0].tolist()
            odds[i, c] = yes - no
    return similarity, odds


def numbers(score, right, front=None):
    """Recalls and median rank, by counting the place of each query's best right answer."""
    hits, places = {1: 0, 5: 0, 10: 0}, []
    for query in range(len(score)):
        order = np.argsort(-score[query], kind="stable").tolist()
        if front is not None:
            candidates, odds = front
            order = sorted(order[:candidates], key=lambda n: -odds[query, n]) + order[candidates:]
        for k in hits:
            hits[k] += bool(set(order[:k]) & set(right[query]))
        places.append(min(order.index(answer) for answer in right[query]) + 1)
    return {f"r{k}": count / len(score) for k, count in hits.items()} | {"median_rank": np.median(places)}


@pytest.mark.parametrize(
    ("batch", "rerank", "memory_gb"), [(64, 3, 1.0), (3, 6, 1.0), (1, 100, 1.0), (64, 5, SMALLEST_GB)]
)
def test_numbers_equal_those_of_scoring_every_pair(model, dataset, batch, rerank, memory_gb):
    similarity, odds = every_pair(model, dataset)
    owner = [row for row, of_image in enumerate(CAPTIONS) for _ in of_image]
    of_image = [[c for c, row in enumerate(owner) if row == image] for image in range(len(CAPTIONS))]
    with cheap_passes():
        result = evaluate_retrieval(model, dataset, SearchSettings(batch, rerank, memory_gb), CPU)

    summed = odds + similarity / model.temperature().item()
    assert result["image_to_text"] == {
        "itc": numbers(similarity, of_image),
        "reranked": numbers(similarity, of_image, (rerank, odds)),
        "summed": numbers(similarity, of_image, (rerank, summed)),
    }
    of_text = [[row] for row in owner]
    assert result["text_to_image"] == {
        "itc": numbers(similarity.T, of_text),
        "reranked": numbers(similarity.T, of_text, (rerank, odds.T)),
        "summed": numbers(similarity.T, of_text, (rerank, summed.T)),
    }
    six = [result[d]["reranked"][key] for d in ("image_to_text", "text_to_image") for key in ("r1", "r5", "r10")]
    assert result["mean_recall"]["reranked"] == pytest.approx(np.mean(six))
    assert result["image_to_text"]["itc"]["r5"] < 1, "the test needs a model that is sometimes wrong"
    assert (result["images"], result["captions"]) == (7, 11)
    assert result["chance"]["r1"] == pytest.approx(max(np.mean([len(c) for c in CAPTIONS]) / 11, 1 / 7))


def test_the_order_shown_is_the_order_scored(model, dataset):
    found = retrieve(model, dataset, SearchSettings(4, 3, 1.0), CPU)
    for direction in (found.image_to_text, found.text_to_image):
        for query, rank in enumerate(direction.reranked_A):
            right = set(direction.right[query].tolist())
            shown = direction.top_AK[query].tolist()
            assert len(set(shown)) == len(shown)
            if rank < len(shown):
                assert next(i for i, item in enumerate(shown) if item in right) == rank


def test_without_itm_nothing_is_reranked_and_the_protocol_says_so(dataset):
    model = make_model(replace(CONFIG, objectives=replace(CONFIG.objectives, itm=0.0)))
    result = evaluate_retrieval(model, dataset, SearchSettings(4, 3, 1.0), CPU)
    assert result["image_to_text"]["reranked"] is None and result["image_to_text"]["summed"] is None
    assert "not re-ranked" in result["protocol"]


def test_training_mode_is_restored(model, dataset):
    model.train()
    evaluate_retrieval(model, dataset, SearchSettings(4, 2, 1.0), CPU)
    assert model.training
    model.eval()


def one_rank(rank, ports, shards, folder):
    """Evaluate as one of four ranks and then of two, and save the results and the order of calls of modules.

    ZeRO-3 gathers weights as modules are called. The same processes serve for both, since starting them takes longest.
    """
    torch.set_num_threads(1)
    dataset = EvalDataset(Mixture([shards]), make_tokenizer(), *eval_args(CONFIG))
    for world, port in ports.items():
        if rank < world:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            dist.init()
            model, calls = make_model(), []
            for name, module in model.named_modules():
                module.register_forward_pre_hook(lambda module, _, name=name, calls=calls: calls.append(name))
            torch.save((*everything(model, dataset), calls), f"{folder}/{world}_{rank}.pt")
            dist.close()


def everything(model, dataset):
    """Retrieval's orders and numbers, and those of reconstruction, with memory for a few texts at a time."""
    search = SearchSettings(2, 4, SMALLEST_GB, equal_captions=True)
    with cheap_passes():
        found = retrieve(model, dataset, search, CPU)
        result = evaluate_retrieval(model, dataset, search, CPU)
    orders = [direction.top_AK.tolist() for direction in (found.image_to_text, found.text_to_image)]
    return orders, result, evaluate_reconstruction(model, dataset, 3, CPU, ["red"])


def test_ranks_run_in_lockstep_and_agree_with_one_rank_to_the_last_bit(model, dataset, shards, tmp_path):
    ports = {world: free_port() for world in (4, 2)}
    given = (ports, str(shards), str(tmp_path))
    torch.multiprocessing.start_processes(one_rank, given, nprocs=4, start_method="forkserver")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = [*everything(model, dataset)]
    finally:
        torch.set_num_threads(threads)
    for world in ports:
        first, *others = (torch.load(tmp_path / f"{world}_{rank}.pt") for rank in range(world))
        assert all(other == first for other in others)
        *results, calls = first
        assert calls
        assert results == alone


def test_equal_captions_count_as_correct_on_request(model, tmp_path):
    """Two images share a caption: each image is right for it, and each copy of it is right for both images."""
    captions = [["a red dog"], ["a cat", "a red dog"], ["a red dog "], ["green star"]]
    twins = EvalDataset(Mixture([make_shards(tmp_path / "twins", captions)]), make_tokenizer(), *eval_args(CONFIG))
    similarity, _ = every_pair(model, twins)
    strict, lenient = (
        evaluate_retrieval(model, twins, SearchSettings(4, 0, 1.0, equal_captions=equal), CPU)
        for equal in (False, True)
    )
    assert strict["image_to_text"]["itc"] == numbers(similarity, [[0], [1, 2], [3], [4]])
    assert lenient["image_to_text"]["itc"] == numbers(similarity, [[0, 2, 3], [0, 1, 2, 3], [0, 2, 3], [4]])
    assert lenient["text_to_image"]["itc"] == numbers(similarity.T, [[0, 1, 2], [1], [0, 1, 2], [0, 1, 2], [3]])
    assert "one equal to it" in lenient["protocol"] and "equal to it" not in strict["protocol"]


def test_intervals_are_percentiles_over_resampled_images(model, dataset):
    """Each resample computed by itself, its captions repeated instead of weighted."""
    result = evaluate_retrieval(model, dataset, SearchSettings(4, 0, 1.0), CPU)
    found = retrieve(model, dataset, SearchSettings(4, 0, 1.0), CPU)
    rng, images, captions = np.random.default_rng(intervals.SEED), [], []
    for _ in range(intervals.RESAMPLES):
        drawn = rng.integers(len(dataset), size=len(dataset))
        images.append(np.mean(found.image_to_text.itc_A[drawn] < 1))
        owned = np.concatenate([np.flatnonzero(dataset.owner == image) for image in drawn])
        captions.append(np.median(found.text_to_image.itc_A[owned]) + 1)
    ends = result["interval"]
    assert ends["image_to_text"]["itc"]["r1"] == pytest.approx(np.quantile(images, [0.025, 0.975]))
    assert ends["text_to_image"]["itc"]["median_rank"] == pytest.approx(np.quantile(captions, [0.025, 0.975]))


def test_a_model_in_bf16_can_be_evaluated(model, dataset):
    """DeepSpeed's bf16 casts every parameter; the numbers stay near those of fp32."""
    half = make_model().to(torch.bfloat16)
    assert (
        evaluate_retrieval(half, dataset, SearchSettings(4, 3, 1.0), CPU).keys()
        == evaluate_retrieval(model, dataset, SearchSettings(4, 3, 1.0), CPU).keys()
    )
    scores = [evaluate_reconstruction(each, dataset, 4, CPU)["pixel_l1"] for each in (half, model)]
    assert scores[0] == pytest.approx(scores[1], rel=0.05)
