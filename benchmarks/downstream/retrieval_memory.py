"""Peak memory of retrieval at COCO's size, with random features of the real sizes in place of a model.

    python benchmarks/downstream/retrieval_memory.py --memory-gb 2 --json benchmarks/downstream/results/memory.json
    python benchmarks/downstream/retrieval_memory.py --pass-pairs 4 --json benchmarks/downstream/results/pass.json

5,000 images of 577 tokens and 25,000 captions of up to 30, width 768, fp32. Everything but the encoders' and the cross
encoders' arithmetic is mvlm's own: tiles, candidates, blocks, passes. `--pass-pairs` measures one real pass of a
ViT-B/16 at 384 pixels and a text encoder of RoBERTa-base's size, with random weights, against the calculated memory.
Needs Linux, for the peak of resident memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvlm.config.schema import Config, Model, Objectives
from mvlm.data.samples.tokenizer import train_tokenizer
from mvlm.evaluate.memory import PASS_COPIES, Tokens
from mvlm.evaluate.retrieval import SearchSettings, evaluate_retrieval
from mvlm.pretrained.encoders import build_model

IMAGES, CAPTIONS_EACH, TOKENS, LENGTH, WIDTH, SIZE = 5000, 5, 577, 30, 768, 384
CPU = torch.device("cpu")


class RandomFeatures(nn.Module):
    """Stands in for a model: its features are computed from the item's number, and as large as real ones."""

    grid = (24, 24)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(max(TOKENS, LENGTH), WIDTH))
        self.vision = self.text = SimpleNamespace(width=WIDTH)
        self.image_projection = SimpleNamespace(linear=SimpleNamespace(out_features=256))
        self.objectives = Objectives()

    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        number_B = image_BCHW[:, 0, 0, 0].float() + 256 * image_BCHW[:, 1, 0, 0].float()
        return self.weight * number_B.sin()[:, None, None]

    def encode_text(self, text_BL: Tensor, valid_BL: Tensor) -> Tensor:
        return self.weight[: text_BL.shape[1]] * text_BL.float().cos()[:, :, None]

    def project_image(self, tokens_BSD: Tensor) -> Tensor:
        return nn.functional.normalize(tokens_BSD[:, 0, :256] + tokens_BSD[:, 0, :1].sin(), dim=-1)

    project_text = project_image

    def match(self, image_BSD: Tensor, text_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        odds_B = (image_BSD[:, 0] * text_BLD[:, 0]).sum(-1)
        return torch.stack([-odds_B, odds_B], dim=1)


class RandomItems:
    """Stands in for shards: numbered images and captions of random lengths."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        count = IMAGES * CAPTIONS_EACH
        self.captions = [str(number) for number in range(count)]
        self.owner = np.arange(count) // CAPTIONS_EACH
        self.lengths = rng.integers(8, LENGTH + 1, count)
        self.tokens = SimpleNamespace(length=LENGTH, encode=lambda caption: np.arange(self.lengths[int(caption)]))

    def __len__(self) -> int:
        return IMAGES

    def images(self, rows: list[int]) -> Tensor:
        image_BCHW = torch.zeros(len(rows), 3, SIZE, SIZE, dtype=torch.uint8)
        numbers = torch.tensor(rows)
        image_BCHW[:, 0], image_BCHW[:, 1] = (part[:, None, None] for part in (numbers % 256, numbers // 256))
        return image_BCHW

    def texts(self, captions: list[int]) -> tuple[Tensor, Tensor]:
        valid_BL = torch.arange(LENGTH) < torch.from_numpy(self.lengths[captions])[:, None]
        return torch.tensor(captions)[:, None].expand(-1, LENGTH) * valid_BL, valid_BL


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def whole(memory_gb: float, rerank: int) -> dict[str, Any]:
    """All of retrieval within `memory_gb`."""
    model, items = RandomFeatures(), RandomItems()
    torch.ones(1).sin()  # so that what torch sets up at first use is not counted
    before, began = peak_gb(), time.monotonic()
    result = evaluate_retrieval(model, items, SearchSettings(64, rerank, memory_gb), CPU)  # type: ignore[arg-type]
    taken = {"memory_gb": memory_gb, "rerank": rerank, "peak_gb": peak_gb() - before}
    return taken | {"seconds": time.monotonic() - began, "protocol": result["protocol"]}


def one_pass(pairs: int) -> dict[str, Any]:
    """The peak memory of a forward pass of real encoders and cross encoders, and that of PASS_COPIES of its tokens."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 4 * WIDTH}
    settings = Model(vision_weights="random", image_size=SIZE, text="roberta", text_weights="random", text_args=sizes)
    model = build_model(Config(model=settings).blueprint, train_tokenizer(["a"], 300)).eval()
    tokens = Tokens.of(model, LENGTH)
    image_BCHW = torch.zeros(pairs, 3, SIZE, SIZE, dtype=torch.uint8)
    text_BL, valid_BL = torch.full((pairs, LENGTH), 5), torch.ones(pairs, LENGTH, dtype=torch.bool)
    with torch.no_grad():
        model.match(model.encode_image(image_BCHW[:1]), model.encode_text(text_BL[:1], valid_BL[:1]), valid_BL[:1])
        before = peak_gb()
        model.match(model.encode_image(image_BCHW), model.encode_text(text_BL, valid_BL), valid_BL)
    reckoned = (pairs - 1) * PASS_COPIES * (tokens.image + tokens.text) / 1e9  # the warm-up pass took one pair's
    return {"pairs": pairs, "peak_gb": peak_gb() - before, "reckoned_gb": reckoned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-gb", type=float, default=2.0)
    parser.add_argument("--rerank", type=int, default=1, help="candidates; more take longer, and only host memory")
    parser.add_argument("--pass-pairs", type=int, default=0, help="instead, measure one real pass of so many pairs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = one_pass(args.pass_pairs) if args.pass_pairs else whole(args.memory_gb, args.rerank)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
