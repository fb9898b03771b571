"""Our losses compared with those of ALBEF and SimMIM, on whose methods ours are built, on the same random inputs.

    python benchmarks/peers/compare_losses.py --albef ALBEF --simmim SimMIM

The arguments are checkouts of github.com/salesforce/ALBEF and github.com/microsoft/SimMIM. Their own `forward` runs,
unchanged, on stand-ins for the encoders that give random features. ALBEF's momentum is off (alpha 0, an empty queue),
as in our method. Prints the largest differences; exits with 1 if one is above its tolerance.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvlm.batch import Encoded
from mvlm.model.losses.itc import begin_contrast, itc_loss
from mvlm.model.losses.itm import NegativeSampler, itm_loss
from mvlm.model.losses.mim import mim_loss
from mvlm.model.vision import VisionEncoder

TRIALS, PAIRS, WIDTH, TOKENS, PATCHES = 20, 24, 32, 7, 5
DRAWS = 4000

TOLERANCES = {
    "ITC": 1e-5,
    "ITM": 1e-5,
    "probability of a negative": 5e-7,
    "frequency of a negative": 0.04,  # five standard deviations, each at most 0.0079, of a share of DRAWS
    "masked image": 1e-5,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--albef", type=Path, required=True, metavar="DIR", help="a checkout of salesforce/ALBEF")
    parser.add_argument("--simmim", type=Path, required=True, metavar="DIR", help="a checkout of microsoft/SimMIM")
    args = parser.parse_args()
    albef = load(args.albef / "models/model_pretrain.py", {"models.vit": VIT, "models.xbert": XBERT}).ALBEF
    simmim = load(args.simmim / "models/simmim.py", SIMMIM_IMPORTS).SimMIM
    differences: dict[str, float] = {}
    for trial in range(TRIALS):
        generator = torch.Generator().manual_seed(trial)
        found = compare_albef(albef, generator) | compare_simmim(simmim, generator)
        differences |= {name: max(value, differences.get(name, 0.0)) for name, value in found.items()}
    differences |= compare_draws(albef)
    for name, value in differences.items():
        print(f"{name:28} largest difference {value:.2e}   tolerance {TOLERANCES[name]:.0e}")
    return int(any(value > TOLERANCES[name] for name, value in differences.items()))


# --- their code, imported without what it does not need here

VIT: dict[str, Any] = {"VisionTransformer": None, "interpolate_pos_embed": None}
XBERT: dict[str, Any] = {"BertConfig": None, "BertForMaskedLM": None}
SIMMIM_IMPORTS: dict[str, dict[str, Any]] = {
    "timm.models.layers": {"trunc_normal_": nn.init.trunc_normal_},
    "peer.swin_transformer": {"SwinTransformer": nn.Module},
    "peer.vision_transformer": {"VisionTransformer": nn.Module},
}


def load(path: Path, imports: dict[str, dict[str, Any]]) -> types.ModuleType:
    """Run a source file as the module `peer.<name>`, with `imports` in place of the modules it imports."""
    if not path.is_file():
        raise SystemExit(f"No file at {path}: give the folder of a checkout.")
    before = dict(sys.modules)
    packages = {name.rpartition(".")[0] for name in imports if not name.startswith("timm")} | {"peer"}
    sys.modules |= {name: types.ModuleType(name) for name in (*packages, *imports)}
    try:
        for name, content in imports.items():
            vars(sys.modules[name]).update(content)
        module = types.ModuleType(f"peer.{path.stem}")
        module.__package__ = "peer"
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(module))
        return module
    finally:
        for name in (*packages, *imports):
            sys.modules.pop(name)
        sys.modules.update(before)


# --- ALBEF


class Inputs:
    """Features of PAIRS pairs, and the weights that turn fused features into logits."""

    def __init__(self, generator: torch.Generator) -> None:
        self.image_BSD = torch.randn(PAIRS, PATCHES, WIDTH, generator=generator)
        self.text_BLD = torch.randn(PAIRS, TOKENS, WIDTH, generator=generator)
        lengths = torch.randint(3, TOKENS + 1, (PAIRS, 1), generator=generator)
        self.valid_BL = torch.arange(TOKENS) < lengths
        self.temperature = torch.rand([], generator=generator) * 0.3 + 0.05
        self.projections = [torch.randn(WIDTH, 16, generator=generator) for _ in range(2)]
        self.classifier = torch.randn(WIDTH, 2, generator=generator) / WIDTH**0.5

    def fuse(self, text_BLD: Tensor, valid_BL: Tensor, image_BSD: Tensor) -> Tensor:
        """Any function of a text, its padding and an image that depends on all of them; BLD."""
        weight = valid_BL.float()[..., None] / valid_BL.float().sum(1)[:, None, None]
        return torch.tanh(text_BLD) * image_BSD.sin().mean(1, keepdim=True) + (weight * text_BLD).sum(1, keepdim=True)

    def encoded(self) -> Encoded:
        sides = zip((self.image_BSD, self.text_BLD), self.projections, strict=True)
        image_BE, text_BE = (F.normalize(tokens[:, 0] @ projection, dim=-1) for tokens, projection in sides)
        ids = torch.arange(PAIRS)
        return Encoded(image_BE, text_BE, ids, ids)


def stand_in(albef: type, inputs: Inputs) -> Any:
    """A `self` for ALBEF.forward: its own methods where they matter, and our features in place of its encoders'."""

    def bert(*_: Any, mode: str, **given: Any) -> Any:
        if mode == "text":
            return SimpleNamespace(last_hidden_state=inputs.text_BLD)
        whole = (given["encoder_embeds"], given["attention_mask"].bool(), given["encoder_hidden_states"])
        return SimpleNamespace(last_hidden_state=inputs.fuse(*whole))

    class TextEncoder:
        config = SimpleNamespace(vocab_size=100)

        def __init__(self) -> None:
            self.bert = bert

        def __call__(self, *_: Any, labels: Tensor | None = None, **__: Any) -> Any:
            return torch.zeros(PAIRS, TOKENS, 100) if labels is None else SimpleNamespace(loss=torch.zeros([]))

    me = SimpleNamespace(temp=inputs.temperature.clone(), mlm_probability=0.15)
    me.tokenizer = SimpleNamespace(pad_token_id=0, cls_token_id=1, mask_token_id=2)
    me.visual_encoder = me.visual_encoder_m = lambda image: inputs.image_BSD
    me.text_encoder = me.text_encoder_m = TextEncoder()
    for side, projection in zip(("vision", "text"), inputs.projections, strict=True):
        setattr(me, f"{side}_proj", lambda x, p=projection: x @ p)
        setattr(me, f"{side}_proj_m", getattr(me, f"{side}_proj"))
    me.itm_head = lambda x: x @ inputs.classifier
    me.image_queue = me.text_queue = torch.zeros(16, 0)
    me._momentum_update = lambda: None
    me._dequeue_and_enqueue = lambda image, text: None
    me.mask = lambda *a, **k: albef.mask(me, *a, **k)  # type: ignore[attr-defined]
    return me


@contextmanager
def multinomial(replacement: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    real = torch.multinomial
    torch.multinomial = replacement  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.multinomial = real


def run_albef(albef: type, inputs: Inputs, draw: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, Tensor]:
    """ALBEF's ITC and ITM losses, with negatives chosen by `draw`."""
    ids = torch.randint(3, 100, (PAIRS, TOKENS), generator=torch.Generator().manual_seed(0))
    text = SimpleNamespace(input_ids=ids, attention_mask=inputs.valid_BL.long())
    with multinomial(draw):
        _, itc, itm = albef.forward(stand_in(albef, inputs), torch.zeros(PAIRS, 1), text, alpha=0)  # type: ignore[attr-defined]
    return itc, itm


def our_negatives(inputs: Inputs, step: int = 0) -> tuple[Tensor, Tensor]:
    position_B = torch.arange(PAIRS) + step * PAIRS
    return NegativeSampler(PAIRS).draw(inputs.encoded(), inputs.encoded(), position_B, inputs.temperature)


def compare_albef(albef: type, generator: torch.Generator) -> dict[str, float]:
    inputs = Inputs(generator)
    image_idx_B, text_idx_B = our_negatives(inputs)
    choices = iter([*image_idx_B, *text_idx_B])  # ALBEF draws an image for every text first, then the texts
    weights: list[Tensor] = []

    def draw(weight: Tensor, count: int) -> Tensor:
        weights.append(weight / weight.sum())
        return next(choices)[None]

    itc, itm = run_albef(albef, inputs, draw)
    pairs, valid_BL = inputs.encoded(), inputs.valid_BL
    given = pairs, inputs.temperature, None
    ours_itc = itc_loss(*given, begin_contrast(*given, exclude_duplicates=True)(), 1)
    positive, negative_image, negative_text = (
        inputs.fuse(text, valid, image)[:, 0] @ inputs.classifier
        for text, valid, image in (
            (inputs.text_BLD, valid_BL, inputs.image_BSD),
            (inputs.text_BLD, valid_BL, inputs.image_BSD[image_idx_B]),
            (inputs.text_BLD[text_idx_B], valid_BL[text_idx_B], inputs.image_BSD),
        )
    )
    logits_B32 = torch.stack([positive, negative_image, negative_text], dim=1)
    all_B3 = torch.ones(PAIRS, 3, dtype=torch.bool)
    ours_itm = itm_loss(logits_B32, all_B3, all_B3.sum(), parts=1)
    logits = pairs.image_BE @ pairs.text_BE.T / inputs.temperature
    own = torch.eye(PAIRS, dtype=torch.bool)
    stated = torch.cat([x.masked_fill(own, float("-inf")).softmax(1) for x in (logits.T, logits)])
    return {
        "ITC": (itc - ours_itc).abs().item(),
        "ITM": (itm - ours_itm).abs().item(),
        "probability of a negative": (torch.stack(weights) - stated).abs().max().item(),
    }


def compare_draws(albef: type) -> dict[str, float]:
    """How often we draw each negative over many steps, against the probabilities that ALBEF passes to its sampler."""
    inputs = Inputs(torch.Generator().manual_seed(TRIALS))
    weights: list[Tensor] = []

    def draw(weight: Tensor, count: int) -> Tensor:
        weights.append(weight / weight.sum())
        return torch.zeros(1, dtype=torch.int64)

    run_albef(albef, inputs, draw)
    counts = torch.zeros(2 * PAIRS, PAIRS)
    for step in range(DRAWS):
        counts[torch.arange(2 * PAIRS), torch.cat(our_negatives(inputs, step))] += 1
    return {"frequency of a negative": (counts / DRAWS - torch.stack(weights)).abs().max().item()}


# --- SimMIM


def compare_simmim(simmim: type, generator: torch.Generator) -> dict[str, float]:
    """SimMIM's loss of an image, a mask and a reconstruction, against ours of the same patches."""
    patch, grid = 4, 6
    image, restored = (torch.randn(3, 3, patch * grid, patch * grid, generator=generator) for _ in range(2))
    mean = std = (1.0, 1.0, 1.0)
    mask_BN = torch.rand(3, grid * grid, generator=generator) < 0.6
    me = SimpleNamespace(encoder=lambda x, mask: x, decoder=lambda z: restored, patch_size=patch, in_chans=3)
    theirs = simmim.forward(me, image, mask_BN.reshape(3, grid, grid).long())  # type: ignore[attr-defined]
    encoder: Any = SimpleNamespace(grid=(grid, grid), patch=patch)
    pixels_MQ, patch_M = VisionEncoder.patchify(encoder, restored)[mask_BN], mask_BN.flatten().nonzero()[:, 0]
    as_read = (image * std[0] + mean[0]) * 255  # normalising gives the image again
    ours = mim_loss(pixels_MQ, as_read, patch_M, patch, mean, std, mask_BN.sum(), parts=1, normalized=False)
    return {"masked image": (theirs - ours).abs().item()}


if __name__ == "__main__":
    sys.exit(main())
