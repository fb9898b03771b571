"""Export in any of the formats, as done by `mvlm export` and by `run.export` in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from mvlm.errors import UserError
from mvlm.export.card import model_card
from mvlm.export.dual import export_dual
from mvlm.export.folder import export_folder

Format = Literal["hf", "onnx", "torch"]


def export_run(run: Path, out: Path, form: Format = "hf") -> None:
    """Export a run's newest checkpoint, or the given one, to a new folder `out`.

    Args:
        form: "hf", for AutoModel and AutoProcessor; "onnx" or "torch", graphs that compute vectors for retrieval.

    Raises:
        UserError: there is no such form or run, packages are missing, or the folder cannot be written.
    """
    if form not in get_args(Format):
        raise UserError(f"There is no export format {form!r}: choose one of {', '.join(get_args(Format))}.")
    if form == "hf":
        export_folder(run, out, model_card(run, out.name))
    else:
        export_dual(run, out, form)
