"""Train a transformers CLIP on shards, tars or Arrow files through mvlm's loader, with transformers' Trainer.

    python transformers_trainer.py "tars/*.tar" --epochs 2

Needs `pip install accelerate`. The loader's position is saved in each checkpoint, from which a run resumes exactly.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.v2.functional import normalize
from transformers import CLIPConfig, CLIPModel, Trainer, TrainerCallback, TrainingArguments
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

import mvlm
from mvlm.data import CaptionLoader
from mvlm.data.samples.tokenizer import train_tokenizer

SIZE, LENGTH = 64, 32
PLACE = "loader.pt"


class LoaderTrainer(Trainer):
    """A Trainer whose batches come from mvlm's loader."""

    def __init__(self, loader: CaptionLoader, **rest: Any) -> None:
        super().__init__(**rest, callbacks=[SavedPlace(loader)])
        self.loader = loader

    def get_train_dataloader(self) -> CaptionLoader:
        return self.loader

    def train(self, resume_from_checkpoint: str | None = None, **rest: Any) -> Any:
        if resume_from_checkpoint:
            self.loader.load_state_dict(torch.load(Path(resume_from_checkpoint) / PLACE))
        return super().train(resume_from_checkpoint, **rest)


class SavedPlace(TrainerCallback):
    """Saves the loader's position in each checkpoint."""

    def __init__(self, loader: CaptionLoader) -> None:
        self.loader = loader

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **rest: Any) -> None:
        torch.save(self.loader.state_dict(), Path(args.output_dir) / f"checkpoint-{state.global_step}" / PLACE)


def main(words: list[str] | None = None) -> list[float]:
    """Train; returns the losses that were logged."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("data")
    arguments.add_argument("--epochs", type=int, default=2)
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--out", default="clip")
    arguments.add_argument("--resume", help="a checkpoint to resume from")
    asked = arguments.parse_args(words)

    tokenizer = train_tokenizer((caption for row in mvlm.open(asked.data) for caption in row.captions), 2000)
    text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.sep_token_id, "max_position_embeddings": LENGTH}
    text |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {name: value for name, value in text.items() if "size" in name and name != "vocab_size"}
    vision |= {"image_size": SIZE, "patch_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))

    def collate(images: torch.Tensor, captions: list[str]) -> dict[str, Any]:
        texts = tokenizer(captions, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        pixels = normalize(images.float() / 255, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        return {"pixel_values": pixels, "return_loss": True, **{k: texts[k] for k in ("input_ids", "attention_mask")}}

    with CaptionLoader(asked.data, batch=asked.batch, image_size=SIZE, collate=collate) as loader:
        settings = TrainingArguments(
            asked.out,
            num_train_epochs=asked.epochs,
            learning_rate=1e-3,
            logging_steps=1,
            save_steps=loader.num_batches // 2 or 1,
            ignore_data_skip=True,  # the loader resumes at its own position
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = LoaderTrainer(loader, model=model, args=settings)
        trainer.train(resume_from_checkpoint=asked.resume)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    print(main())
