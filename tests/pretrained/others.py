"""Small models of other projects, with the names in their checkpoints, that share no code with mvlm.

Written from facebookresearch/mae (models_mae.py), microsoft/SimMIM (models/simmim.py, models/vision_transformer.py) and
salesforce/ALBEF and BLIP (models/vit.py, models/xbert.py): the names and the arithmetic are theirs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, PATCH, DEPTH = 32, 2, 16, 2


class Attention(nn.Module):
    """SimMIM's has biases for queries and values only, and adds a bias to each pair of positions."""

    def __init__(self, simmim: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=not simmim)
        if simmim:
            self.q_bias, self.v_bias = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        qkv = self.qkv(x)
        if hasattr(self, "q_bias"):
            qkv = qkv + torch.cat([self.q_bias, torch.zeros(WIDTH), self.v_bias])
        q, k, v = qkv.unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5
        scores = scores if bias is None else scores + bias
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, simmim: bool) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH, eps=1e-6), Attention(simmim)
        self.norm2, self.mlp = nn.LayerNorm(WIDTH, eps=1e-6), Mlp()
        if simmim:
            self.gamma_1, self.gamma_2 = nn.Parameter(torch.rand(WIDTH)), nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        first, second = (self.gamma_1, self.gamma_2) if hasattr(self, "gamma_1") else (1, 1)
        x = x + first * self.attn(self.norm1(x), bias)
        return x + second * self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class RelativePositionBias(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * side - 1) ** 2 + 3, HEADS))
        places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
        apart = places[:, :, None] - places[:, None] + side - 1
        count = (2 * side - 1) ** 2
        index = torch.empty(side * side + 1, side * side + 1, dtype=torch.int64)
        index[1:, 1:] = apart[0] * (2 * side - 1) + apart[1]
        index[0], index[:, 0], index[0, 0] = count, count + 1, count + 2
        self.register_buffer("relative_position_index", index)

    def forward(self) -> Tensor:
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


class Vit(nn.Module):
    """The encoder of all of them: patches, CLS, positions, blocks, norm -> all tokens."""

    def __init__(self, side: int, simmim: bool = False, positions: bool = True, relative: bool = False) -> None:
        super().__init__()
        self.patch_embed, self.cls_token = PatchEmbed(), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, side * side + 1, WIDTH)) if positions else None
        self.rel_pos_bias = RelativePositionBias(side) if relative else None
        self.blocks = nn.ModuleList(Block(simmim) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        if simmim:
            self.mask_token = nn.Parameter(torch.randn(1, 1, WIDTH))

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.patch_embed(image)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token, x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x if self.pos_embed is None else x + self.pos_embed
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x)


class Mae(Vit):
    """MAE's encoder is not a module of its own: the decoder's parameters are beside its own."""

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self.decoder_embed, self.mask_token = nn.Linear(WIDTH, 16), nn.Parameter(torch.randn(1, 1, 16))
        self.decoder_pos_embed = nn.Parameter(torch.randn(1, side * side + 1, 16))
        self.decoder_norm, self.decoder_pred = nn.LayerNorm(16), nn.Linear(16, 3 * PATCH * PATCH)


class SimMim(nn.Module):
    def __init__(self, side: int, relative: bool) -> None:
        super().__init__()
        self.encoder = Vit(side, simmim=True, positions=not relative, relative=relative)
        self.decoder = nn.Sequential(nn.Conv2d(WIDTH, 3 * PATCH * PATCH, 1))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))


class Output(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inner, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class BertAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self, self.output = SelfAttention(), Output(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.self.query, self.self.key, self.self.value)
        )
        weights = (q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        return self.output((weights @ v).transpose(1, 2).flatten(2), x)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, 2 * WIDTH)


class BertLayer(nn.Module):
    def __init__(self, reads_images: bool) -> None:
        super().__init__()
        self.attention, self.intermediate, self.output = BertAttention(), Dense(), Output(2 * WIDTH)
        if reads_images:
            self.crossattention = BertAttention()

    def forward(self, x: Tensor) -> Tensor:
        """As in their mode "text", without cross-attention."""
        x = self.attention(x)
        return self.output(F.gelu(self.intermediate.dense(x)), x)


class Embeddings(nn.Module):
    def __init__(self, words: int, positions: int) -> None:
        super().__init__()
        self.word_embeddings, self.position_embeddings = nn.Embedding(words, WIDTH), nn.Embedding(positions, WIDTH)
        self.token_type_embeddings, self.LayerNorm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)
        self.register_buffer("position_ids", torch.arange(positions)[None])

    def forward(self, text: Tensor) -> Tensor:
        places = self.position_embeddings(self.position_ids[:, : text.shape[1]])
        return self.LayerNorm(self.word_embeddings(text) + self.token_type_embeddings.weight[0] + places)


class Layers(nn.Module):
    def __init__(self, fusing_from: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(number >= fusing_from) for number in range(4))


class Bert(nn.Module):
    """Four layers; those from `fusing_from` on read images."""

    def __init__(self, words: int, positions: int, fusing_from: int) -> None:
        super().__init__()
        self.embeddings, self.encoder = Embeddings(words, positions), Layers(fusing_from)

    def forward(self, text: Tensor, layers: int) -> Tensor:
        x = self.embeddings(text)
        for layer in self.encoder.layer[:layers]:
            x = layer(x)
        return x


class Masked(nn.Module):
    """BertForMaskedLM: the encoder below `bert`, the classifier of words below `cls`."""

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        self.bert, self.cls = bert, nn.Sequential(nn.Linear(WIDTH, WIDTH))


class Albef(nn.Module):
    """Both encoders with their momentum copies and queues, as all checkpoints have."""

    def __init__(self, side: int, words: int, positions: int, blip: bool) -> None:
        super().__init__()
        bert = Bert(words, positions, fusing_from=0 if blip else 2)
        self.visual_encoder, self.text_encoder = Vit(side), bert if blip else Masked(bert)
        self.visual_encoder_m, self.vision_proj = Vit(side), nn.Linear(WIDTH, 8)
        self.text_encoder_m = Masked(Bert(words, positions, fusing_from=0 if blip else 2))
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.register_buffer("image_queue", torch.randn(8, 10))

    @property
    def bert(self) -> Bert:
        return self.text_encoder.bert if isinstance(self.text_encoder, Masked) else self.text_encoder
