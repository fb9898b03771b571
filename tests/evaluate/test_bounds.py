"""How much memory evaluation takes, and how often it may interrupt training."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvlm.errors import UserError
from mvlm.evaluate import memory, training
from mvlm.evaluate.memory import PASS_COPIES, SIMILARITY_BYTES, Tokens

COCO = {"images": 5000, "texts": 25_000}
LARGE = Tokens(image=577 * 768 * 4, text=30 * 768 * 4, contrastive=4 * 256)  # ViT-B/16 at 384, RoBERTa-base, fp32


def taken(sizes, images, texts, tokens):
    """Bytes held with a tile of similarities, and with the tokens and a forward pass."""
    features = (images + texts) * tokens.contrastive
    held = sizes.batch * tokens.image + sizes.texts * tokens.text
    return features + sizes.similarities * SIMILARITY_BYTES, features + held + sizes.batch * PASS_COPIES * (
        tokens.image + tokens.text
    )


def test_coco_takes_the_memory_that_the_page_says():
    found = memory.sizes(4.0, 64, 5000, 25_000, LARGE)
    assert (found.batch, found.texts) == (64, 20_288)
    assert found.similarities // 25_000 == 1240
    assert max(taken(found, 5000, 25_000, LARGE)) <= 4e9
    assert memory.sizes(8.0, 64, 5000, 25_000, LARGE).texts == 25_000, "all texts at once"


@settings(max_examples=200, deadline=None)
@given(
    gigabytes=st.floats(1e-6, 20),
    batch=st.integers(1, 512),
    images=st.integers(1, 10_000),
    texts=st.integers(1, 50_000),
    image=st.integers(1_000, 4_000_000),
    text=st.integers(100, 400_000),
)
def test_the_bound_holds_and_an_error_says_how_much_is_enough(gigabytes, batch, images, texts, image, text):
    tokens = Tokens(image, text, 1024)
    try:
        found = memory.sizes(gigabytes, batch, images, texts, tokens)
    except UserError as error:
        enough = float(str(error).split("give ")[1].split(" or")[0])
        assert enough > gigabytes
        assert memory.sizes(enough, batch, images, texts, tokens).batch >= 1
        return
    assert 1 <= found.batch <= batch
    assert found.texts == texts or found.texts % found.batch == 0
    assert max(taken(found, images, texts, tokens)) <= gigabytes * 1e9 + SIMILARITY_BYTES


def test_sizes_of_tokens_are_those_of_the_model(model, dataset):
    tokens = Tokens.of(model, 12)
    with torch.no_grad():
        image, text = model.encode_image(dataset.images([0])), model.encode_text(*dataset.tokens.batch(["red " * 30]))
        assert tokens.image == image.nbytes and tokens.text == text.nbytes
        assert tokens.contrastive == model.project_image(image).nbytes


def test_a_long_evaluation_is_postponed_until_its_share_of_time_allows_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    pace = training.Pace(share=0.1)
    assert not pace.too_soon(), "nothing is known about the first"
    with pace:
        now[0] += 60
    now[0] += 599
    assert pace.too_soon()
    now[0] += 2
    assert not pace.too_soon()
    with pace:
        now[0] += 29
    assert not pace.too_soon(), "half a minute is never too long"
