"""The dual encoder, from an image or a sentence to its unit vector, as graphs that run without our code."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.errors import UserError
from mvlm.export.folder import whole_folder
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.runs import Loaded, load_run

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""How far a component of a unit vector may be from the model's own."""
LARGEST_BATCH = 65_536


class ImageFeatures(nn.Module):
    def __init__(self, model: MaskVLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """uint8 BCHW -> BE."""
        return self.model.project_image(self.model.encode_image(pixel_values))


class TextFeatures(nn.Module):
    def __init__(self, model: MaskVLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 BL, 1 = a token and 0 = padding -> BE."""
        return self.model.project_text(self.model.encode_text(input_ids, attention_mask.bool()))


Run = Callable[..., np.ndarray]
Writer = Callable[[ExportedProgram, Path], Run]


def export_dual(run: Path, out: Path, form: str) -> None:
    """Write a folder of `image.*`, `text.*`, tokenizer.json and inputs.json, each graph checked against the model.

    Args:
        form: "onnx" or "torch" (torch.export's .pt2).

    Raises:
        UserError: there is no such run, the packages for ONNX are missing, or the folder cannot be written.
    """
    missing = [name for name in ONNX_PACKAGES if form == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install {' '.join(ONNX_PACKAGES)}.")
    loaded = load_run(run)
    tokenizer = load_tokenizer(str(loaded.tokenizer_folder))
    write: Writer = _write_onnx if form == "onnx" else _write_torch
    suffix = "onnx" if form == "onnx" else "pt2"
    with whole_folder(out) as temporary, torch.no_grad():
        _write_checked(ImageFeatures(loaded.model), _images(loaded), write, temporary / f"image.{suffix}")
        _write_checked(TextFeatures(loaded.model), _texts(loaded), write, temporary / f"text.{suffix}")
        temperature, bias = loaded.model.contrastive_scale()
        own = tokenizer.backend_tokenizer
        own.no_padding()  # the tokenizer may have been saved with other lengths
        own.enable_truncation(loaded.blueprint.text_length)
        own.save(str(temporary / "tokenizer.json"))
        inputs = {
            "pixel_values": "uint8 [B, 3, H, W], RGB, resized whole by an antialiased bicubic; normalised within",
            "image_size": loaded.blueprint.model.image_size,
            "input_ids": "int64 [B, L], special tokens included",
            "attention_mask": "int64 [B, L], 1 = a token, 0 = padding",
            "text_length": loaded.blueprint.text_length,
            "pad_token_id": tokenizer.pad_token_id,
            "temperature": float(temperature),
            "bias": 0.0 if bias is None else float(bias),
        }
        (temporary / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n", encoding="utf-8")


def _images(loaded: Loaded[MaskVLM]) -> tuple[tuple[Tensor, ...], Any]:
    size = loaded.blueprint.model.image_size
    image_BCHW = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=_generator())
    return (image_BCHW,), ({0: Dim("batch", min=1, max=LARGEST_BATCH)},)


def _texts(loaded: Loaded[MaskVLM]) -> tuple[tuple[Tensor, ...], Any]:
    length = loaded.blueprint.text_length
    words = loaded.model.text.embedding.num_embeddings
    text_BL = torch.randint(0, words, (3, length), generator=_generator())
    mask_BL = (torch.arange(length) < torch.tensor([[length], [length // 2], [2]])).long()
    sizes = {0: Dim("batch", min=1, max=LARGEST_BATCH), 1: Dim("length", min=2, max=length)}
    return (text_BL, mask_BL), (sizes, sizes)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _write_checked(features: nn.Module, sample: tuple[tuple[Tensor, ...], Any], write: Writer, path: Path) -> None:
    inputs, sizes = sample
    wanted_BE = features(*inputs)  # before tracing, lest the model cache the tracer's tensors
    run = write(torch.export.export(features, inputs, dynamic_shapes=sizes), path)
    for rows in (1, len(inputs[0])):
        found_BE = run(*(tensor[:rows] for tensor in inputs))
        error = float(np.abs(found_BE - wanted_BE[:rows].numpy()).max())
        if not error <= TOLERANCE:
            raise RuntimeError(f"{path.name} differs from the model by {error:.1e}")


def _write_torch(program: ExportedProgram, path: Path) -> Run:
    torch.export.save(program, path)
    read = torch.export.load(path).module()
    return lambda *inputs: read(*inputs).numpy()


def _write_onnx(program: ExportedProgram, path: Path) -> Run:
    import onnxruntime

    names = [str(name) for name in program.graph_signature.user_inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, about its own code
        converted = torch.onnx.export(program, (), input_names=names, output_names=["features"], verbose=False)
    assert converted is not None
    converted.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = [each.name for each in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(given, (x.numpy() for x in inputs), strict=True)))[0]
