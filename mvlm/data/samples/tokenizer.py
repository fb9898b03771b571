"""Tokenizers: trained on a corpus's captions, saved, and loaded from a file, a folder or the hub."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mvlm.data.samples.bpe import train_bpe
from mvlm.errors import UserError
from mvlm.runtime import hub

ROLES = {
    "bos_token": ("<s>", "[CLS]"),
    "cls_token": ("<s>", "[CLS]"),
    "eos_token": ("</s>", "[SEP]"),
    "sep_token": ("</s>", "[SEP]"),
    "unk_token": ("<unk>", "[UNK]"),
    "pad_token": ("<pad>", "[PAD]"),
    "mask_token": ("<mask>", "[MASK]"),
}
"""A bare tokenizer.json does not say what its special tokens are for; the names used by RoBERTa and BERT do."""


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Like `train_bpe`, for transformers."""
    return _with_roles(train_bpe(captions, vocab_size))


def load_tokenizer(path_or_name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer.json file, a folder with one, or a tokenizer of the hub by name.

    Raises:
        UserError: it cannot be loaded, or has no mask, padding, first or last token.
    """
    path = Path(path_or_name)
    if path.is_dir() and not (path / "tokenizer_config.json").exists() and (path / "tokenizer.json").is_file():
        path = path / "tokenizer.json"
    if path.is_file():
        tokenizer: PreTrainedTokenizerBase = _with_roles(_read_file(path))
    else:
        if not path.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path_or_name):
            raise UserError(
                f"No tokenizer at {path_or_name}: give data.tokenizer a tokenizer.json, which `mvlm-data "
                "tokenizer` makes."
            )
        tokenizer = _from_pretrained(path_or_name)
    missing = [name for name in ("mask", "pad") if getattr(tokenizer, f"{name}_token_id") is None]
    for names in (("cls", "bos"), ("sep", "eos")):
        if all(getattr(tokenizer, f"{name}_token_id") is None for name in names):
            missing.append(" or ".join(names))
    if missing:
        raise UserError(
            f"The tokenizer {path_or_name} has no {', no '.join(missing)} token: take one of a masked language model, "
            "or make one with `mvlm-data tokenizer`."
        )
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write `tokenizer` to `folder`, from which `load_tokenizer` reads an equal one; raises OSError on failure."""
    with disk_errors():
        tokenizer.save_pretrained(str(folder))


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn the library's file errors, plain Exceptions with the system's error number in their text, into OSErrors."""
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)$", str(error))
        if isinstance(error, OSError) or not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


def _with_roles(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    roles = {role: next((name for name in names if name in vocabulary), None) for role, names in ROLES.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{role: t for role, t in roles.items() if t})


def _read_file(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception
        raise UserError(f"{path} is not a tokenizer.json ({error}): make one with `mvlm-data tokenizer`.") from None


def _from_pretrained(path_or_name: str) -> PreTrainedTokenizerBase:
    try:
        # A cached one must load at once on a node without network, where the hub's client would keep retrying.
        with contextlib.suppress(OSError):
            return AutoTokenizer.from_pretrained(path_or_name, local_files_only=True)
        if not Path(path_or_name).is_dir():
            hub.ask()
        return AutoTokenizer.from_pretrained(path_or_name)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(
            f"The tokenizer {path_or_name} cannot be loaded ({hub.reason(error)}): download it where there is a "
            "network and give its folder, or make one with `mvlm-data tokenizer`."
        ) from None
