"""Retrieval against the model asked about every single pair, and over ranks."""

import os
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch

from mvlm import dist
from mvlm.data.dataset import EvalDataset
from mvlm.data.index import Mixture
from mvlm.evaluate.reconstruction import evaluate_reconstruction
from mvlm.evaluate.retrieval import evaluate_retrieval, retrieve
from tests.evaluate.tiny import CAPTIONS, CONFIG, make_model, make_tokenizer

CPU = torch.device("cpu")


@torch.no_grad()
def every_pair(model, dataset):
    """Similarity and log-odds of match, images x captions, each pair alone."""
    similarity, odds = (np.zeros((len(dataset), len(dataset.captions))) for _ in range(2))
    for i in range(len(dataset)):
        image = model.encode_image(dataset.images([i]))
        for c in range(len(dataset.captions)):
            text, valid = dataset.texts([c])
            words = model.encode_text(text, valid)
            similarity[i, c] = (model.project_image(image) * model.project_text(words)).sum()
            no, yes = model.match(image, words, valid)[0].tolist()
            odds[i, c] = yes - no
    return similarity, odds


def recalls(score, right, front=None):
    """Plain counting: the best right answer among the first k of each query."""
    hits = {1: 0, 5: 0, 10: 0}
    for query in range(len(score)):
        order = np.argsort(-score[query], kind="stable").tolist()
        if front is not None:
            candidates, odds = front
            order = sorted(order[:candidates], key=lambda n: -odds[query, n]) + order[candidates:]
        for k in hits:
            hits[k] += bool(set(order[:k]) & set(right[query]))
    return {f"r{k}": count / len(score) for k, count in hits.items()}


@pytest.mark.parametrize(("batch", "rerank"), [(64, 3), (3, 6), (1, 100)])
def test_recalls_equal_asking_about_every_pair(model, dataset, batch, rerank):
    similarity, odds = every_pair(model, dataset)
    owner = [row for row, of_image in enumerate(CAPTIONS) for _ in of_image]
    of_image = [[c for c, row in enumerate(owner) if row == image] for image in range(len(CAPTIONS))]
    result = evaluate_retrieval(model, dataset, batch, rerank, CPU)

    assert result["image_to_text"] == {
        "itc": recalls(similarity, of_image),
        "reranked": recalls(similarity, of_image, (rerank, odds)),
    }
    of_text = [[row] for row in owner]
    assert result["text_to_image"] == {
        "itc": recalls(similarity.T, of_text),
        "reranked": recalls(similarity.T, of_text, (rerank, odds.T)),
    }
    assert result["image_to_text"]["itc"]["r5"] < 1, "this model must leave something to tell apart"
    assert (result["images"], result["captions"]) == (7, 11)
    assert result["chance"]["r1"] == pytest.approx(max(np.mean([len(c) for c in CAPTIONS]) / 11, 1 / 7))


def test_the_order_shown_is_the_order_scored(model, dataset):
    found = retrieve(model, dataset, 4, 3, CPU)
    for direction in (found.image_to_text, found.text_to_image):
        for query, rank in enumerate(direction.reranked_A):
            right = set(direction.right_AR[query].tolist())
            shown = direction.top_AK[query].tolist()
            assert len(set(shown)) == len(shown)
            if rank < len(shown):
                assert next(i for i, item in enumerate(shown) if item in right) == rank


def test_without_itm_nothing_is_reranked_and_the_protocol_says_so(dataset):
    model = make_model(replace(CONFIG, objectives=replace(CONFIG.objectives, itm=0.0)))
    result = evaluate_retrieval(model, dataset, 4, 3, CPU)
    assert result["image_to_text"]["reranked"] is None
    assert "not re-ranked" in result["protocol"]


def test_training_mode_comes_back(model, dataset):
    model.train()
    evaluate_retrieval(model, dataset, 4, 2, CPU)
    assert model.training
    model.eval()


def one_rank(rank, port, shards, folder):
    """Evaluate as one of two ranks; leave the result and the order of the modules' calls, which ZeRO-3 gathers by."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    dist.init()
    model, calls = make_model(), []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda module, _, name=name: calls.append(name))
    dataset = EvalDataset(Mixture([shards]), make_tokenizer(), CONFIG)
    results = evaluate_retrieval(model, dataset, 3, 4, CPU), evaluate_reconstruction(model, dataset, 3, CPU, ["red"])
    torch.save((*results, calls), f"{folder}/{rank}.pt")
    dist.close()


def test_two_ranks_call_in_lockstep_and_agree_with_one(model, dataset, shards, tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    torch.multiprocessing.spawn(one_rank, (port, str(shards), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    retrieval, reconstruction, calls = first
    assert calls
    assert retrieval == evaluate_retrieval(model, dataset, 3, 4, CPU)
    alone = evaluate_reconstruction(model, dataset, 3, CPU, ["red"])
    for key in ("word_accuracy", "word_loss", "pixel_l1"):
        assert reconstruction[key] == pytest.approx(alone[key], rel=1e-4)


def test_half_precision_models_are_evaluated(model, dataset):
    """DeepSpeed's bf16 casts every parameter; the numbers stay near those of fp32."""
    half = make_model().to(torch.bfloat16)
    assert evaluate_retrieval(half, dataset, 4, 3, CPU).keys() == evaluate_retrieval(model, dataset, 4, 3, CPU).keys()
    scores = [evaluate_reconstruction(each, dataset, 4, CPU)["pixel_l1"] for each in (half, model)]
    assert scores[0] == pytest.approx(scores[1], rel=0.05)
