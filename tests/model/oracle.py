"""MaskVLM written a second time, from the paper and our design decisions alone: the four losses and the negatives.

It shares no code with the model. It reads a dictionary of the model's parameters and computes with plain torch
operations in float64, one pair at a time, without padding or batches, and skips nothing because it is unused. The
encoders are a vision transformer like timm's and a text encoder like transformers' RoBERTa.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mvlm.batch import IGNORE, Batch
from mvlm.config.schema import Config

UINT64 = (1 << 64) - 1
POSITION_OF_FIRST_TOKEN = 2  # RoBERTa counts from the padding token's id, 1, plus one
MEAN = STD = 0.5  # of the pixels, for the image encoder that the tests build


@dataclass
class Outcome:
    """What a forward pass must give.

    Attributes:
        losses: by objective, float64 scalars.
        negatives: for each pair the image drawn for its text and the text drawn for its image; None = no negative.
        correct: by metric, whether each prediction is correct.
    """

    losses: dict[str, Tensor]
    negatives: list[tuple[int | None, int | None]]
    correct: dict[str, list[bool]]


class Oracle:
    """Computes the outcome of a batch.

    Args:
        parameters: by the model's names, float64.
        vision_heads, text_heads: attention heads of the two encoders, which the parameters do not show.
    """

    def __init__(self, parameters: Mapping[str, Tensor], config: Config, vision_heads: int, text_heads: int) -> None:
        self.p, self.config = parameters, config
        self.vision_heads, self.text_heads = vision_heads, text_heads
        self.drops = config.objectives.image_masking == "drop"
        patch = "patch_embed.proj" if self.drops else "patch_embed.patch_embed.proj"
        self.patch_weight, self.patch_bias = (self.p[f"vision.vit.{patch}.{name}"] for name in ("weight", "bias"))
        self.side: int = self.patch_weight.shape[-1]

    def __call__(self, batch: Batch) -> Outcome:
        objectives, pairs = self.config.objectives, range(len(batch))
        whole_images = [self.image(pixels, None) for pixels in batch.image_BCHW]
        masked_images = [self.image(*view) for view in zip(batch.masked_image_BCHW, batch.patch_mask_BN, strict=True)]
        whole_texts, masked_texts = (
            [self.text(ids[valid]) for ids, valid in zip(texts, batch.valid_BL, strict=True)]
            for texts in (batch.text_BL, batch.masked_text_BL)
        )
        both = objectives.hide == "both"
        images, texts = (masked_images, masked_texts) if both else (whole_images, whole_texts)
        if objectives.reconstruct_from == "self":
            images, texts = ([torch.zeros_like(one[:1]) for one in given] for given in (images, texts))
        correct: dict[str, list[bool]] = {"word_accuracy": [], "itm_accuracy": []}
        words, pixels = [], []
        for i in pairs:
            words += list(self.token_losses(masked_texts[i], images[i], batch.target_BL[i], correct["word_accuracy"]))
            pixels += list(
                self.pixel_errors(masked_images[i], texts[i], batch.masked_image_BCHW[i], batch.patch_mask_BN[i])
            )

        masked = objectives.alignment_inputs == "masked"
        images, texts = (masked_images, masked_texts) if masked else (whole_images, whole_texts)
        image_features, text_features = self.project("image", images), self.project("text", texts)
        similar = [[a @ b / self.temperature() for b in text_features] for a in image_features]
        negatives = [self.draw(batch, i, similar) for i in pairs]
        matches = []
        for i, (image, text) in enumerate(negatives):
            for picture, sentence, label in ((i, i, 1), (image, i, 0), (i, text, 0)):
                if picture is not None and sentence is not None:
                    logits = self.match(images[picture], texts[sentence])
                    matches.append(torch.logsumexp(logits, 0) - logits[label])
                    correct["itm_accuracy"].append(bool(logits[1] > logits[0]) == bool(label))
        losses = {"text": words, "image": pixels, "itc": list(self.contrasts(batch, similar)), "itm": matches}
        wanted = {name: torch.stack(terms).mean() for name, terms in losses.items() if getattr(objectives, name)}
        return Outcome(wanted, negatives, correct)

    def token_losses(self, sentence: Tensor, image: Tensor, target: Tensor, correct: list[bool]) -> Iterator[Tensor]:
        fused = self.cross("cross_text", sentence, image)
        weight, bias = self.pair("mlm_head.classifier") if not self.config.model.tie_classifier else self.tied()
        for place, word in enumerate(target.tolist()):
            if word != IGNORE:
                logits = weight @ fused[place] + bias
                correct.append(int(logits.argmax()) == word)
                yield torch.logsumexp(logits, 0) - logits[word]

    def tied(self) -> tuple[Tensor, Tensor]:
        return self.p["text.model.embeddings.word_embeddings.weight"], self.p["mlm_head.classifier.bias"]

    def pixel_errors(self, image: Tensor, text: Tensor, pixels: Tensor, mask: Tensor) -> Iterator[Tensor]:
        """The mean absolute error of each masked patch, whose values are in the order row, column, channel."""
        queries = self.cross("cross_image", image, text)
        if self.drops:
            queries = self.put_back(queries, mask)
        decoded = self.cross("image_decoder.blocks", queries, text)
        for patch in mask.nonzero().flatten().tolist():
            cell = self.cell(pixels, patch).double() / 255
            truth = ((cell - MEAN) / STD).permute(1, 2, 0).reshape(-1)
            if self.config.objectives.normalized_targets:
                centred = truth - truth.sum() / len(truth)
                truth = centred / (centred.square().sum() / (len(truth) - 1) + 1e-6).sqrt()
            yield (self.linear("image_decoder.pixels", decoded[1 + patch]) - truth).abs().mean()

    def put_back(self, visible: Tensor, mask: Tensor) -> Tensor:
        """As in MAE: a learned token in place of each dropped patch, and sinusoids of row and column added to all."""
        rest = iter(visible[1:])
        side = math.isqrt(len(mask))
        tokens = [visible[0]]
        for patch, is_masked in enumerate(mask.tolist()):
            token = self.p["image_decoder.mask_tokens.token"] if is_masked else next(rest)
            half = visible.shape[1] // 2
            tokens.append(token + torch.tensor(sinusoids(patch // side, half) + sinusoids(patch % side, half)))
        return torch.stack(tokens)

    def contrasts(self, batch: Batch, similar: list[list[Tensor]]) -> Iterator[Tensor]:
        for i in range(len(batch)):
            others = [j for j in range(len(batch)) if j == i or not self.same(batch, i, j)]
            if self.config.objectives.contrastive == "sigmoid":
                bias = self.p["contrastive_bias.change"][0] - 10
                judged = [torch.sigmoid(similar[i][j] + bias) for j in others]
                yield -sum(torch.log(p if j == i else 1 - p) for j, p in zip(others, judged, strict=True))
                continue
            to_texts = torch.logsumexp(torch.stack([similar[i][j] for j in others]), 0)
            to_images = torch.logsumexp(torch.stack([similar[j][i] for j in others]), 0)
            yield (to_texts + to_images) / 2 - similar[i][i]

    def draw(self, batch: Batch, i: int, similar: list[list[Tensor]]) -> tuple[int | None, int | None]:
        """argmax over the other pairs of the group of similarity plus Gumbel noise of (seed, direction, positions)."""
        objectives, seed = self.config.objectives, self.config.run.seed
        first = i - i % objectives.itm_group
        candidates = [j for j in range(first, first + objectives.itm_group) if j != i and not self.same(batch, i, j)]
        if not candidates:
            return None, None
        positions = batch.position_B.tolist()

        def best(direction: int) -> int:
            def score(j: int) -> float:
                close = similar[j][i] if direction == 0 else similar[i][j]
                hard = 0.0 if objectives.itm_negatives == "uniform" else close.item()
                return hard + gumbel(2 * seed + direction, positions[i], positions[j])

            return max(candidates, key=score)

        return best(0), best(1)

    def same(self, batch: Batch, i: int, j: int) -> bool:
        ids = (batch.image_id_B.tolist(), batch.caption_id_B.tolist())
        return self.config.objectives.exclude_duplicates and any(one[i] == one[j] for one in ids)

    def temperature(self) -> Tensor:
        model = self.config.model
        if self.config.objectives.contrastive == "sigmoid":
            return 1 / (10 * torch.exp(self.p["temperature.change"][0]))
        return self.p["temperature.value"][0].clamp(model.temperature_min, model.temperature_max)

    def project(self, modality: str, sequences: list[Tensor]) -> list[Tensor]:
        features = [self.linear(f"{modality}_projection.linear", tokens[0]) for tokens in sequences]
        return [feature / feature.square().sum().sqrt() for feature in features]

    def match(self, image: Tensor, text: Tensor) -> Tensor:
        fused_image = self.cross("cross_image", image, text)[0]
        fused_text = self.cross("cross_text", text, image)[0]
        if "match_head.align.weight" in self.p:
            fused_text = self.linear("match_head.align", fused_text)
        return self.linear("match_head.classifier", fused_image * fused_text)

    def image(self, pixels: Tensor, mask: Tensor | None) -> Tensor:
        """CLS and the patches of an image; a masked patch becomes the mask token or is dropped."""
        patches = []
        count = (pixels.shape[1] // self.side) * (pixels.shape[2] // self.side)
        for patch in range(count):
            cell = (self.cell(pixels, patch).double() / 255 - MEAN) / STD
            token = torch.einsum("dchw,chw->d", self.patch_weight, cell) + self.patch_bias
            if mask is not None and mask[patch] and not self.drops:
                token = self.p["vision.vit.patch_embed.mask_token"]
            patches.append(token)
        tokens = torch.stack([self.p["vision.vit.cls_token"][0, 0], *patches]) + self.p["vision.vit.pos_embed"][0]
        if mask is not None and self.drops:
            tokens = torch.cat([tokens[:1], tokens[1:][~mask]])
        for number in self.numbers("vision.vit.blocks"):
            block = f"vision.vit.blocks.{number}"
            normed = self.norm(f"{block}.norm1", tokens, 1e-6)
            query, key, value = self.linear(f"{block}.attn.qkv", normed).chunk(3, -1)
            tokens = tokens + self.linear(f"{block}.attn.proj", attend(query, key, value, self.vision_heads))
            normed = self.norm(f"{block}.norm2", tokens, 1e-6)
            tokens = tokens + self.linear(f"{block}.mlp.fc2", gelu(self.linear(f"{block}.mlp.fc1", normed)))
        return self.norm("vision.vit.norm", tokens, 1e-6)

    def cell(self, pixels: Tensor, patch: int) -> Tensor:
        row, column = divmod(patch, pixels.shape[2] // self.side)
        top, left = row * self.side, column * self.side
        return pixels[:, top : top + self.side, left : left + self.side]

    def text(self, ids: Tensor) -> Tensor:
        embeddings, p = "text.model.embeddings", self.p
        first = POSITION_OF_FIRST_TOKEN
        tokens = p[f"{embeddings}.word_embeddings.weight"][ids] + p[f"{embeddings}.token_type_embeddings.weight"][0]
        tokens = tokens + p[f"{embeddings}.position_embeddings.weight"][first : first + len(ids)]
        tokens = self.norm(f"{embeddings}.LayerNorm", tokens, 1e-12)
        for number in self.numbers("text.model.encoder.layer"):
            layer = f"text.model.encoder.layer.{number}"
            query, key, value = (self.linear(f"{layer}.attention.self.{x}", tokens) for x in ("query", "key", "value"))
            attended = self.linear(f"{layer}.attention.output.dense", attend(query, key, value, self.text_heads))
            tokens = self.norm(f"{layer}.attention.output.LayerNorm", tokens + attended, 1e-12)
            inner = gelu(self.linear(f"{layer}.intermediate.dense", tokens))
            tokens = self.norm(f"{layer}.output.LayerNorm", tokens + self.linear(f"{layer}.output.dense", inner), 1e-12)
        return tokens

    def cross(self, name: str, tokens: Tensor, context: Tensor) -> Tensor:
        """Blocks of self-attention, cross-attention and feed-forward, each with its norm before or after it."""
        pre = self.config.model.cross_norm == "pre"
        for number in self.numbers(f"{name}.blocks"):
            block = f"{name}.blocks.{number}"
            for part in ("self", "cross", "feed"):
                x = self.norm(f"{block}.{part}_norm", tokens, 1e-5) if pre else tokens
                if part == "feed":
                    change = self.linear(f"{block}.feed_forward.2", gelu(self.linear(f"{block}.feed_forward.0", x)))
                else:
                    attention = f"{block}.{part}_attention"
                    key, value = self.linear(f"{attention}.key_value", x if part == "self" else context).chunk(2, -1)
                    query = self.linear(f"{attention}.query", x)
                    change = self.linear(f"{attention}.out", attend(query, key, value, self.config.model.cross_heads))
                tokens = tokens + change
                if not pre:
                    tokens = self.norm(f"{block}.{part}_norm", tokens, 1e-5)
        return self.norm(f"{name}.norm", tokens, 1e-5) if pre else tokens

    def numbers(self, stack: str) -> range:
        """The numbers of the layers in a stack."""
        names = [name.removeprefix(f"{stack}.") for name in self.p if name.startswith(f"{stack}.")]
        return range(1 + max(int(name.split(".")[0]) for name in names))

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self.p[f"{name}.weight"], self.p[f"{name}.bias"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.pair(name)
        return x @ weight.T + bias

    def norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        weight, bias = self.pair(name)
        return functional.layer_norm(x, x.shape[-1:], weight, bias, epsilon)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Softmax attention of T queries to U keys, one head at a time."""
    parts = zip(*(x.chunk(heads, -1) for x in (query, key, value)), strict=True)
    return torch.cat([torch.softmax(q @ k.T / math.sqrt(q.shape[-1]), -1) @ v for q, k, v in parts], -1)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def sinusoids(position: int, width: int) -> list[float]:
    """Sines, then cosines, of a position, with wavelengths from 2 pi to 10,000 times that (Vaswani et al., 2017)."""
    angles = [position / 10000 ** (number / (width // 2)) for number in range(width // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def gumbel(key: int, row: int, column: int) -> float:
    """Standard Gumbel noise from the upper 24 bits of splitmix64 over a key and two positions."""
    mixed = splitmix(splitmix(splitmix(key) ^ row) ^ column)
    return -math.log(-math.log(((mixed >> 40) + 0.5) / 2**24))


def splitmix(x: int) -> int:
    """One output of splitmix64 for a state (Steele, Lea, Flood 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & UINT64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & UINT64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & UINT64
    return x ^ (x >> 31)
