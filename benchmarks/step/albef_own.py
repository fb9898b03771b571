"""ALBEF's own code (github.com/salesforce/ALBEF) made to run with today's transformers and timm.

Its models are used unchanged. What they import and today's transformers no longer has is supplied here: documentation
helpers, and the base class of its BERT, of which only a few methods are used.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mvlm.config.schema import Model
from mvlm.model.maskvlm import MaskVLM


class _PreTrainedModel(nn.Module):
    """The part of transformers 4's base class that ALBEF's BERT calls."""

    def __init__(self, config: Any, *_: Any, **__: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def init_weights(self) -> None:
        self.apply(self._init_weights)

    def get_head_mask(self, _: None, layers: int) -> list[None]:
        return [None] * layers

    def invert_attention_mask(self, mask_BT: Tensor) -> Tensor:
        return (1.0 - mask_BT[:, None, None, :].to(self.dtype)) * torch.finfo(self.dtype).min


def _undecorated(*_: Any, **__: Any) -> Any:
    return lambda function: function


def _not_called(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("ALBEF's pretraining prunes no heads")


def load_albef(checkout: Path) -> ModuleType:
    """The module models/model_pretrain.py of a checkout; occupies the names `models` and `transformers.file_utils`."""
    import transformers.modeling_utils as modeling
    from transformers.pytorch_utils import apply_chunking_to_forward, prune_linear_layer
    from transformers.utils import ModelOutput

    file_utils: Any = ModuleType("transformers.file_utils")
    file_utils.ModelOutput = ModelOutput
    for name in ("code_sample_docstrings", "start_docstrings", "start_docstrings_to_model_forward"):
        setattr(file_utils, f"add_{name}", _undecorated)
    file_utils.replace_return_docstrings = _undecorated
    sys.modules["transformers.file_utils"] = file_utils
    replaced: dict[str, Any] = {
        "apply_chunking_to_forward": apply_chunking_to_forward,
        "find_pruneable_heads_and_indices": _not_called,
        "prune_linear_layer": prune_linear_layer,
        "PreTrainedModel": _PreTrainedModel,
    }
    before = {name: getattr(modeling, name, None) for name in replaced}
    for name, value in replaced.items():
        setattr(modeling, name, value)
    sys.path.insert(0, str(checkout))
    module = importlib.import_module("models.model_pretrain")
    modeling.PreTrainedModel = before["PreTrainedModel"]
    return module


def build_albef(checkout: Path, maskvlm: MaskVLM, config: Model, vocabulary: int, pairs: int) -> nn.Module:
    """ALBEF at the sizes of a MaskVLM, with as many text layers, and as many cross layers on top of them."""
    module: Any = load_albef(checkout)
    original, vision, text = module.VisionTransformer, maskvlm.vision, maskvlm.text.settings
    width, blocks = vision.width, vision.vit.blocks
    own = {
        "embed_dim": width,
        "depth": len(blocks),
        "num_heads": blocks[0].attn.num_heads,
        "patch_size": vision.patch,
    }
    module.VisionTransformer = lambda **given: original(**given | own)
    bert = module.BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=text.num_hidden_layers + config.cross_depth,
        num_attention_heads=text.num_attention_heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        chunk_size_feed_forward=0,
        fusion_layer=text.num_hidden_layers,
        encoder_width=width,
    )
    module.BertConfig = SimpleNamespace(from_json_file=lambda _: bert)
    module.BertForMaskedLM.from_pretrained = classmethod(lambda cls, _, config: cls(config))
    module.concat_all_gather = lambda tensor: tensor  # one process
    settings = {
        "mlm_probability": 0.3,
        "embed_dim": config.contrastive_width,
        "image_res": config.image_size,
        "vision_width": width,
        "bert_config": "",
        "temp": 0.07,
        "queue_size": 256 * pairs,
        "momentum": 0.995,
    }
    tokenizer = SimpleNamespace(pad_token_id=1, cls_token_id=0, mask_token_id=4)
    return module.ALBEF("", tokenizer, settings, init_deit=False)
