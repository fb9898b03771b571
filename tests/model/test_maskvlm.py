"""The model's forward pass compared with a plain reference in float64, and what each part may and may not see."""

import dataclasses
import itertools

import pytest
import torch
from oracle import Oracle, Outcome
from transformers import PreTrainedTokenizerBase

from mvlm.batch import IGNORE, Batch, Encoded, GlobalBatch, MetricAccumulator, Negative
from mvlm.config.load import load_config
from mvlm.config.schema import Config
from mvlm.data.loading.collate import masked_places, pack
from mvlm.errors import UserError
from mvlm.kernels.fusion import FUSION
from mvlm.kernels.views import VIEWS
from mvlm.model import maskvlm
from mvlm.model.heads import MaskTokens, MlmHead, Temperature
from mvlm.model.losses.itm import NegativeSampler
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.encoders import build_image_encoder, build_model
from mvlm.pretrained.load import build_with_weights
from tests.conftest import ROOT, TINY


def tiny(*overrides: str) -> Config:
    return load_config(ROOT / "mvlm/configs/tiny.toml", [*TINY, *overrides])


def build(tokenizer: PreTrainedTokenizerBase, *overrides: str) -> MaskVLM:
    torch.manual_seed(0)
    return build_model(tiny(*overrides).blueprint, tokenizer)


def make_batch(
    pairs: int = 8, vocabulary: int = 290, patches: int = 4, duplicates: bool = False, views: int = 1
) -> Batch:
    """A batch of random pairs.

    Args:
        duplicates: whether two pairs share an image, and two others a caption.
        views: 2 = the image that is masked differs from the whole one.
    """
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (pairs, 3, 32, 32), generator=generator, dtype=torch.uint8)
    lengths = torch.randint(4, 11, (pairs,), generator=generator)
    valid = torch.arange(10) < lengths[:, None]
    text = torch.randint(5, vocabulary, (pairs, 10), generator=generator).masked_fill(~valid, 1)
    text[:, 0] = 0
    masked = torch.zeros_like(valid)
    masked[torch.arange(pairs), torch.arange(pairs) % 3 + 1] = True
    masked[:4, 2] = True
    target = torch.where(masked, text, IGNORE)
    mask = torch.stack([torch.randperm(patches, generator=generator) < 3 * patches // 4 for _ in range(pairs)])
    masked_image = image if views == 1 else 255 - image
    image_id, caption_id = torch.arange(pairs), torch.arange(pairs)
    if duplicates:
        image_id[1], caption_id[6] = image_id[3], caption_id[5]
    texts = text, valid, text.masked_fill(masked, 4), target
    position = torch.arange(pairs) + 40
    return Batch(
        image, masked_image, mask, *texts, position, image_id, caption_id, masked_places(mask, target), pack(valid)
    )


WIDER = [
    "model.vision_args={patch_size=8, embed_dim=48, depth=2, num_heads=4}",
    "model.cross_depth=2",
    "model.decoder_depth=1",
    "model.cross_heads=4",
    "objectives.image_mask_block=2",
]
"""Unequal widths and depths, and four times the patches."""

PASSES = (("pruned", "joint"), ("plain", "apart"))
"""Implementations of `fusion` and `views`: those of a run, and the plain ones."""

SWITCHES = [
    [],
    ["objectives.hide=both"],
    ["objectives.reconstruct_from=self"],
    ["objectives.reconstruct_from=self", "objectives.itc=0", "objectives.itm=0"],
    ["objectives.image_masking=drop"],
    ["objectives.image_masking=drop", "objectives.alignment_inputs=masked", "objectives.hide=both"],
    ["objectives.alignment_inputs=masked"],
    ["objectives.alignment_inputs=masked", "objectives.hide=both"],
    ["model.cross_depth=3", "model.decoder_depth=2", "objectives.itm_group=8", "run.seed=3"],
    ["model.cross_norm=post", "objectives.itm_negatives=uniform", "run.seed=7"],
    [
        "objectives.exclude_duplicates=false",
        "run.seed=1",
        "model.tie_classifier=true",
        "objectives.normalized_targets=true",
    ],
    ["objectives.contrastive=sigmoid"],
    ["objectives.itm=0"],
    ["objectives.image=0", "objectives.text=0"],
    ["objectives.image=0", "objectives.itc=0"],
    ["objectives.text=0", "objectives.itm=0", "objectives.itc=0"],
]
"""Settings of different losses share a case. Where duplicates may be drawn, seed 1 draws one and seed 0 does not."""


def perturbed(tokenizer: PreTrainedTokenizerBase, *overrides: str) -> MaskVLM:
    """In float64, with no parameter at its initial 0 or 1, and weights large enough for nonlinearities to matter."""
    model = build(tokenizer, "model.cross_init_std=0.2", *overrides).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temperature.value":
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def consult(model: MaskVLM, config: Config, batch: Batch) -> tuple[Outcome, dict[str, torch.Tensor]]:
    """The oracle's outcome, and the copies of the model's parameters that its losses depend on."""
    copies = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    heads = model.vision.vit.blocks[0].attn.num_heads, model.text.settings.num_attention_heads
    return Oracle(copies, config, *heads)(batch), copies


SIZES = [pytest.param([], id="small", marks=pytest.mark.campaign), pytest.param(WIDER, id="wider")]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "overrides", SWITCHES, ids=lambda words: ",".join(word.partition(".")[2] for word in words) or "default"
)
def test_losses_negatives_and_gradients_match_the_oracle(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, overrides: list[str], size: list[str]
) -> None:
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor.double())  # what is fp32 by design too
    model = perturbed(tokenizer, *size, *overrides)
    batch = make_batch(patches=model.grid[0] ** 2, duplicates=True, views=2)
    outcome, copies = consult(model, tiny(*size, *overrides), batch)
    weights = {"image": 0.5, "text": 2.0, "itc": 0.7, "itm": 3.0}
    sum(weights[name] * loss for name, loss in outcome.losses.items()).backward()
    exact = 1e-12 if model.objectives.image_masking == "token" else 1e-6  # the model keeps sinusoids in fp32
    for (fusion, views), pool in itertools.product(PASSES, (None, with_negatives_as_tokens(model, batch))):
        monkeypatch.setattr(FUSION, "choice", fusion)
        monkeypatch.setattr(VIEWS, "choice", views)
        negatives = record_negatives(monkeypatch)
        losses = model(batch, pool)
        assert losses.keys() == outcome.losses.keys()
        for name, loss in losses.items():
            torch.testing.assert_close(loss, outcome.losses[name], rtol=exact, atol=exact)
        if negatives:
            assert list(zip(*(index.tolist() for index in negatives[0]), strict=True)) == outcome.negatives
        model.zero_grad()
        sum(weights[name] * loss for name, loss in losses.items()).backward()
        for name, parameter in model.named_parameters():
            found, expected = (torch.zeros_like(p) if p.grad is None else p.grad for p in (parameter, copies[name]))
            torch.testing.assert_close(found, expected, rtol=100 * exact, atol=10 * exact, msg=f"{name}, {fusion}")


def with_negatives_as_tokens(model: MaskVLM, batch: Batch) -> GlobalBatch:
    """The batch alone, with its negatives given by their tokens, as other ranks give them, and not by row."""
    alone = model.alone(batch)

    def negatives(own: Encoded, temperature: torch.Tensor, *tokens: torch.Tensor) -> tuple[Negative, Negative]:
        image, text = (negative.row_B for negative in alone.negatives(own, temperature, *tokens))
        return Negative(None, tokens[0][image]), Negative(None, tokens[1][text], batch.valid_BL[text])

    return dataclasses.replace(alone, negatives=negatives)


def record_negatives(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A list to which each later draw adds its negatives."""
    negatives: list[tuple[torch.Tensor, torch.Tensor]] = []
    draw = NegativeSampler.draw

    def recorded(*arguments: object, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        negatives.append(draw(*arguments, **options))
        return negatives[-1]

    monkeypatch.setattr(NegativeSampler, "draw", recorded)
    return negatives


@pytest.mark.parametrize("overrides", [[], ["objectives.hide=both", "objectives.alignment_inputs=masked"]])
def test_accuracies_match_the_oracle(tokenizer: PreTrainedTokenizerBase, overrides: list[str]) -> None:
    model, batch = build(tokenizer, *WIDER, *overrides), make_batch(patches=16)
    with torch.no_grad():
        model.mlm_head.classifier.bias[batch.target_BL[0].max()] = (
            9.0  # an untrained model would predict no token right
        )
        model.match_head.classifier.weight.mul_(20.0)
    metrics = MetricAccumulator()
    with_metrics = model(batch, None, metrics)
    expected = consult(model.double(), tiny(*WIDER, *overrides), batch)[0].correct
    assert metrics.total == {name: len(correct) for name, correct in expected.items()}
    for name, correct in expected.items():
        assert 0 < float(metrics.correct[name]) == sum(correct) < len(correct), name
    assert metrics.values["temperature"] == model.temperature.value.detach().float()
    without = model.float()(batch)
    assert all(torch.equal(with_metrics[name], without[name]) for name in without)


@pytest.mark.parametrize("masking", ["token", "drop"])
def test_a_masked_patch_is_not_seen(tokenizer: PreTrainedTokenizerBase, masking: str) -> None:
    model, batch = build(tokenizer, f"objectives.image_masking={masking}").eval(), make_batch()
    mask = batch.patch_mask_BN[:1]
    other = batch.image_BCHW[:1].clone()
    for patch in mask[0].nonzero().flatten().tolist():
        row, column = divmod(patch, 2)
        other[0, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 0
    with torch.no_grad():
        assert torch.equal(model.encode_image(batch.image_BCHW[:1], mask), model.encode_image(other, mask))
        assert not torch.equal(model.encode_image(batch.image_BCHW[:1]), model.encode_image(other))


def test_an_encoder_that_drops_masked_patches_sees_only_the_others(tokenizer: PreTrainedTokenizerBase) -> None:
    model, batch = build(tokenizer, *WIDER, "objectives.image_masking=drop").eval(), make_batch(patches=16)
    vit, mask = model.vision.vit, batch.patch_mask_BN
    with torch.no_grad():
        found = model.encode_image(batch.image_BCHW, mask)
        tokens = vit._pos_embed(vit.patch_embed(model.normalize(batch.image_BCHW)))
        for pair in range(len(batch)):
            kept = torch.cat([torch.tensor([True]), ~mask[pair]])
            torch.testing.assert_close(found[pair], vit.norm(vit.blocks(tokens[pair : pair + 1, kept]))[0])
        assert model.encode_image(batch.image_BCHW).shape == (8, 17, 48)  # a pass without a mask sees all patches


def test_mask_tokens_take_the_places_of_dropped_patches() -> None:
    tokens = MaskTokens(6, (2, 3))
    mask = torch.tensor([[True, False, True, False, False, True], [False, True, True, True, False, False]])
    visible = torch.randn(2, 4, 6)
    placed = tokens(visible, mask)
    assert torch.equal(placed[:, 0], visible[:, 0])
    patches = placed[:, 1:] - tokens.position_ND
    torch.testing.assert_close(patches[~mask], visible[:, 1:].flatten(0, 1))
    torch.testing.assert_close(patches[mask], tokens.token.expand(6, -1))
    assert len(torch.unique(tokens.position_ND, dim=0)) == 6


def test_an_encoder_that_cannot_drop_patches_is_refused_by_name(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="eva02_tiny_patch14_224"):
        build(tokenizer, "model.vision=eva02_tiny_patch14_224", "objectives.image_masking=drop", "model.vision_args={}")


def test_unpatchify_inverts_patchify(tokenizer: PreTrainedTokenizerBase) -> None:
    model, image = build(tokenizer), make_batch().image_BCHW.float()
    patches = model.patchify(image)
    assert torch.equal(patches[3, 2], image[3, :, 16:32, 0:16].permute(1, 2, 0).flatten())
    assert torch.equal(model.unpatchify(patches), image)


def test_new_weights_have_the_configured_standard_deviation(tokenizer: PreTrainedTokenizerBase) -> None:
    """Within five standard errors; biases are 0."""

    def check_std(tensor: torch.Tensor, std: float) -> None:
        found = tensor.detach().double().square().mean().sqrt().item()
        assert found == pytest.approx(std, rel=5 / (2 * tensor.numel()) ** 0.5)

    model = build(tokenizer, *WIDER, "model.cross_init_std=0.3")
    parts = (
        "cross_image",
        "cross_text",
        "image_decoder",
        "mlm_head",
        "match_head",
        "image_projection",
        "text_projection",
    )
    linear = [m for part in parts for m in getattr(model, part).modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 8 * (2 + 2 + 1) + 6
    for module in linear:
        check_std(module.weight, 0.3)
        assert not module.bias.any()
    check_std(model.vision.vit.pos_embed[:, 1:], 3**-0.5)  # as large as a uniform patch of value 1 becomes
    check_std(model.vision.vit.patch_embed.mask_token, 0.02)


def test_an_objective_of_weight_zero_has_no_loss_and_no_gradients(tokenizer: PreTrainedTokenizerBase) -> None:
    model, batch = build(tokenizer, "objectives.itm=0", "objectives.image=0", "objectives.text=0"), make_batch()
    losses = model(batch)
    assert losses.keys() == {"itc"}
    losses["itc"].backward()
    assert all(p.grad is None for p in model.cross_image.parameters())


def test_a_group_of_equal_captions_has_no_negatives(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = dataclasses.replace(make_batch(), caption_id_B=torch.tensor([9, 9, 9, 9, 4, 5, 6, 7]))
    itm_loss, logits_given = maskvlm.itm_loss, []

    def recorded(logits: torch.Tensor, *others: object) -> torch.Tensor:
        logits_given.append(logits)
        return itm_loss(logits, *others)

    monkeypatch.setattr(maskvlm, "itm_loss", recorded)
    metrics = MetricAccumulator()
    found = build(tokenizer)(batch, None, metrics)["itm"]
    log_p = logits_given[0].log_softmax(-1)
    kept = [log_p[:, 0, 1], log_p[4:, 1, 0], log_p[4:, 2, 0]]
    torch.testing.assert_close(found, -torch.cat(kept).mean())
    assert metrics.total["itm_accuracy"] == 16


@pytest.mark.parametrize(
    ("value", "slope", "passes"),
    [
        *((0.2, 1.0, 1), (0.2, -1.0, 1)),  # within the bounds
        *((0.05, 1.0, 0), (0.05, -1.0, 1), (0.5, 1.0, 1), (0.5, -1.0, 0)),  # at a bound
        *((0.01, 1.0, 0), (0.01, -1.0, 1), (0.9, 1.0, 1), (0.9, -1.0, 0)),  # beyond it
    ],
)
def test_the_temperature_is_clamped_and_its_gradient_never_leads_out_of_its_bounds(
    value: float, slope: float, passes: int
) -> None:
    temperature = Temperature(tiny("model.temperature_min=0.05").model)
    temperature.value.data.fill_(value)
    assert temperature().item() == pytest.approx(min(max(value, 0.05), 0.5))
    (slope * temperature()).backward()
    assert temperature.value.grad.item() == passes * slope


def test_the_token_classifier_is_the_embedding_or_a_copy_of_pretrained_ones() -> None:
    embedding = torch.nn.Embedding(20, 8)
    tied = MlmHead(embedding.embedding_dim, embedding, False, tiny("model.tie_classifier=true").model)
    assert tied.classifier.weight is embedding.weight
    for pretrained in (True, False):
        head = MlmHead(embedding.embedding_dim, embedding, pretrained, tiny().model)
        assert torch.equal(head.classifier.weight, embedding.weight) is pretrained
        assert head.classifier.weight is not embedding.weight


def test_an_encoder_with_a_dynamic_image_size_computes_the_same(tokenizer: PreTrainedTokenizerBase) -> None:
    sizes = "patch_size=16, embed_dim=32, depth=1, num_heads=2"
    words = (f"model.vision_args={{{sizes}{more}}}" for more in ("", ", dynamic_img_size=true"))
    fixed, dynamic = (build_model(tiny(word).blueprint, tokenizer).eval() for word in words)
    image, mask = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.tensor([[True, False] * 2] * 2)
    with torch.no_grad():
        assert torch.equal(fixed.encode_image(image, mask), dynamic.encode_image(image, mask))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("volo_d1_224", "PatchEmbed"),
        ("pit_ti_224", "ConvEmbedding"),
        ("xcit_nano_12_p16_224", "ConvPatchEmbed"),
        ("vit_tiny_r_s16_p8_224", "HybridEmbed"),
    ],
)
def test_an_encoder_that_mixes_patches_before_they_are_masked_is_refused(name: str, layer: str) -> None:
    config = tiny(f"model.vision={name}", "model.vision_args={}", "model.image_size=224").model
    with torch.device("meta"), pytest.raises(UserError, match=f"embed each patch by itself but by a {layer}, "):
        build_image_encoder(config)


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("model.vision=resnet18", "vision"),
        ("model.vision=no_such_vit", "no_such_vit"),
        ("model.vision=vit_base_patch16_siglip_224", "CLS"),
        ("model.vision_args={patch_size=16, embed_dim=32, depth=1, num_heads=2, patch_drop_rate=0.5}", "patch_drop"),
        ("model.vision_args={patch_size=16, embed_dim=32, depth=1, num_heads=2, in_chans=1}", "in_chans is not 3"),
        ("model.text=no_such_text", "no_such_text"),
        ("model.cross_heads=5", "cross_heads"),
        ("model.image_size=40", "image_size"),
        ("model.vision_weights=nothing.safetensors", "nothing.safetensors"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_in_one_sentence(
    tokenizer: PreTrainedTokenizerBase, override: str, word: str
) -> None:
    with pytest.raises(UserError, match=word) as caught:
        build_with_weights(tiny(override).blueprint, tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "setting"),
    [("tie_classifier=true", "tie_classifier = true"), ("classifier_init=embedding", "classifier_init = 'embedding'")],
)
def test_embeddings_of_another_width_than_the_tokens_cannot_be_the_classifier(
    tokenizer: PreTrainedTokenizerBase, override: str, setting: str
) -> None:
    sizes = "model.text_args={hidden_size=24, num_hidden_layers=1, num_attention_heads=3, embedding_size=16}"
    with pytest.raises(UserError, match=rf"^model.{setting} .* have 16 values, but its tokens have 24: leave it out"):
        build(tokenizer, "model.text=electra", sizes, f"model.{override}")


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ("deit_tiny_distilled_patch16_224", "bert"),
        ("vit_small_patch14_reg4_dinov2", "distilbert"),
        ("eva02_tiny_patch14_224", "electra"),
        ("deit_tiny_patch16_224", "albert"),
    ],
)
def test_other_encoders_can_be_trained(tokenizer: PreTrainedTokenizerBase, vision: str, text: str) -> None:
    size = "{hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=48, embedding_size=16}"
    if text == "distilbert":
        size = "{dim=24, n_layers=1, n_heads=3, hidden_dim=48}"
    patch = 14 if "14" in vision else 16
    model = build(
        tokenizer,
        f"model.vision={vision}",
        "model.vision_args={depth=1, embed_dim=48, num_heads=3}",
        f"model.image_size={2 * patch}",
        f"model.text={text}",
        f"model.text_args={size}",
        "model.cross_heads=3",
    )
    batch = make_batch()
    image = batch.image_BCHW[:, :, : 2 * patch, : 2 * patch]
    losses = model(dataclasses.replace(batch, image_BCHW=image, masked_image_BCHW=image))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values()) and len(losses) == 4
    assert model.vision.vit.patch_embed.mask_token.grad.abs().sum() > 0
