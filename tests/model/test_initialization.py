"""Initial weights: each parameter, or any piece of one, is drawn independently, distributed as by its library."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mvlm.config.load import load_config
from mvlm.config.schema import Config
from mvlm.model.encoders import Encoders
from mvlm.model.init_record import recorded
from mvlm.model.initialization import PIECE, InitialWeights
from mvlm.pretrained.encoders import Vocabulary, assemble, build_model, build_recorded
from tests.conftest import ROOT, TINY

TOKENS = Vocabulary(300, 1)
CONVOLUTIONAL = ("model.vision=test_efficientnet", "model.vision_args={embed_dim=32}", "model.image_size=64")
BEIT = (
    "model.vision=beit_base_patch16_224",
    "model.vision_args={patch_size=16, embed_dim=32, depth=1, num_heads=2, init_values=0.1, use_rel_pos_bias=true}",
)
BERT = (
    "model.text=bert",
    "model.text_args={hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64}",
)
MODERN = (
    "model.text=modernbert",
    "model.text_args={hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64}",
)


def configuration(*overrides: str) -> Config:
    return load_config(ROOT / "mvlm/configs/tiny.toml", [*TINY, *overrides])


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def distance(one: Tensor, other: Tensor) -> float:
    """Kolmogorov-Smirnov, of two samples of the same size: above 2.4 sqrt(2 / size) once in 100,000 times."""
    first, second = (sample.detach().flatten().sort().values for sample in (one, other))
    at, count = torch.cat([first, second]), len(first)
    below = [torch.searchsorted(sample, at, right=True) / count for sample in (first, second)]
    return float((below[0] - below[1]).abs().max())


def build(*overrides: str) -> Encoders:
    return build_model(configuration(*overrides).blueprint, TOKENS)


@pytest.mark.parametrize(
    "overrides",
    [(), CONVOLUTIONAL, BEIT, BERT, MODERN, ("objectives.image_masking=drop", "model.tie_classifier=true")],
    ids=["roberta", "convolutional", "beit", "bert", "modernbert", "drop"],
)
def test_every_tensor_is_distributed_as_by_its_library(overrides: tuple[str, ...]) -> None:
    blueprint = configuration(*overrides).blueprint
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        reference = tensors(assemble(blueprint, TOKENS, 0))  # by the libraries, with torch's own random numbers
    ours = tensors(build_model(blueprint, TOKENS))
    assert ours.keys() == reference.keys()
    drawn = 0
    for name, expected in reference.items():
        found = ours[name]
        assert (found.shape, found.dtype, found.device.type) == (expected.shape, expected.dtype, "cpu"), name
        if not isinstance(found, nn.Parameter) or expected.unique().numel() < 3:
            assert torch.equal(found, expected), name
            continue
        drawn += 1
        assert not torch.equal(found, expected), name
        if expected.numel() >= 1000:
            assert distance(found, expected) < 2.4 * (2 / expected.numel()) ** 0.5, name
    assert drawn > 10


def test_any_piece_equals_that_part_of_the_whole_model() -> None:
    model, initial = build_recorded(configuration().blueprint, Vocabulary(4000, 1))
    whole = dict(build_model(configuration().blueprint, Vocabulary(4000, 1)).named_parameters())
    assert all(parameter.is_meta for parameter in model.parameters())
    for name, parameter in reversed(whole.items()):  # one by one, in another order
        count = parameter.numel()
        for start, stop in ((0, count), (count // 3, count // 2), (count - 1, count)):
            assert torch.equal(initial.piece(name, start, stop), parameter.detach().flatten()[start:stop]), name
    word = "text.model.embeddings.word_embeddings.weight"
    count = whole[word].numel()
    assert count > 2 * PIECE  # which are drawn separately; a range may cross their border
    across = initial.piece(word, PIECE - 5, PIECE + 5)
    assert torch.equal(across, whole[word].detach().flatten()[PIECE - 5 : PIECE + 5])


@pytest.mark.parametrize("overrides", [(), BERT], ids=["roberta", "bert"])
def test_a_piece_of_a_large_tensor_is_drawn_without_the_rest(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of embeddings, whose padding row is zero."""
    _, initial = build_recorded(configuration(*overrides).blueprint, TOKENS)
    monkeypatch.setattr(InitialWeights, "_replayed", None)  # it would draw the whole tensor
    word = "text.model.embeddings.word_embeddings.weight"
    padding = initial.piece(word, 20, 80)
    assert (padding[12:44] == 0).all() and (padding[:12] != 0).all() and (padding[44:] != 0).all()
    for name in dict(initial._model.named_parameters()).keys() - {"vision.vit.pos_embed", "temperature.value"}:
        initial.piece(name, 0, 1)


def test_a_parameter_depends_only_on_its_name_and_the_seed() -> None:
    config = configuration()
    torch.manual_seed(7)
    shallow = dict(build_model(config.blueprint, TOKENS).named_parameters())
    torch.manual_seed(8)
    deeper = dict(build("model.cross_depth=3").named_parameters())
    other = dict(build_model(replace(config.blueprint, seed=1), TOKENS).named_parameters())
    assert len(deeper) > len(shallow)
    assert all(torch.equal(parameter, deeper[name]) for name, parameter in shallow.items())
    random = [name for name, parameter in shallow.items() if parameter.unique().numel() > 2]
    assert len(random) > 20 and not any(torch.equal(shallow[name], other[name]) for name in random)
    matrices = [shallow[name].flatten()[:64] for name in random if shallow[name].numel() >= 64]
    assert len({tuple(some.tolist()) for some in matrices}) == len(matrices)


def test_tied_weights_are_shared_and_copies_follow_their_source() -> None:
    tied = build("model.tie_classifier=true")
    assert tied.mlm_head.classifier.weight is tied.text.embedding.weight
    model, initial = build_recorded(configuration("model.classifier_init=embedding").blueprint, TOKENS)
    word = model.text.embedding.weight
    initial.give(word, torch.full(word.shape, 0.5, dtype=torch.float64))  # as pretrained weights are given
    initial.materialize()
    assert (model.text.embedding.weight == 0.5).all() and model.text.embedding.weight.dtype == torch.float32
    assert (model.mlm_head.classifier.weight == 0.5).all()
    assert model.mlm_head.classifier.weight is not model.text.embedding.weight


class Odd(nn.Module):
    """Has tensors that are computed, drawn before they are assigned, or written in part, as an encoder might."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = nn.Parameter(torch.randn(40, 3) * 0.1)
        self.partly = nn.Parameter(torch.ones(10, 4))
        nn.init.normal_(self.partly.data[2:5])
        self.orthogonal = nn.Parameter(nn.init.orthogonal_(torch.empty(8, 8)))
        self.register_buffer("numbers", torch.tensor([1.0, 2.0]).cumsum(0) + torch.arange(2))
        self.plain = torch.full((3,), 2.0)


def test_any_way_of_filling_a_tensor_is_replayed() -> None:
    def materialized(*names: str) -> dict[str, Tensor]:
        with recorded() as record:
            module = Odd()
        initial = InitialWeights(module, record, 0)
        alone = {name: initial.whole(name) for name in names}
        initial.materialize()
        everything = {"plain": module.plain, **tensors(module)}
        assert all(torch.equal(tensor, everything[name]) for name, tensor in alone.items())
        return everything

    found, again = materialized("orthogonal"), materialized("partly", "scaled")
    assert found.keys() == again.keys() and all(torch.equal(found[name], again[name]) for name in found)
    assert found["scaled"].std().item() == pytest.approx(0.1, rel=0.3)
    assert (found["partly"][[0, 1, 5, 9]] == 1).all() and not (found["partly"][2:5] == 1).any()
    torch.testing.assert_close(found["orthogonal"] @ found["orthogonal"].T, torch.eye(8))
    assert found["numbers"].tolist() == [1, 4] and found["plain"].tolist() == [2, 2, 2]
