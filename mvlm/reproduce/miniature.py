"""Settings that turn the recipes into a rehearsal: models that take milliseconds per step, and two epochs."""

from __future__ import annotations

RECIPE = (
    "model.vision=vit_base_patch16_224",
    "model.vision_weights=random",
    "model.vision_args={patch_size=16, embed_dim=32, depth=1, num_heads=2}",
    "model.image_size=32",
    "model.text=roberta",
    "model.text_weights=random",
    "model.text_args={hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, "
    "max_position_embeddings=64}",
    "model.cross_depth=1",
    "model.decoder_depth=1",
    "model.cross_heads=2",
    "model.contrastive_width=16",
    "objectives.image_mask_block=1",
    "objectives.itm_group=4",
    "task.answer_minimum=3",
    "optim.warmup_epochs=0",
    "train.epochs=2",
    "train.global_batch=32",
    "log.tensorboard=false",
    "log.pictures=0",
    "eval.rerank=4",
)
"""Overrides for every recipe."""

RECIPE_OF_FIRST = ("data.tokenizer=auto", "data.vocabulary=300")
"""Further overrides for runs that do not begin with another run's weights, and its tokenizer."""
