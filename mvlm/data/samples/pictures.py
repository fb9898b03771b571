"""A user's own pictures and sentences, and pictures sorted into a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvlm.data.images.decode import BadImage, Decoded, load_image
from mvlm.data.images.encoded import EXTENSIONS
from mvlm.data.images.transforms import eval_view
from mvlm.data.samples.padding import BatchTokenizer
from mvlm.data.samples.standing_in import StandIns
from mvlm.errors import UserError

SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS)
"""Files in a folder with one of these are taken for pictures; a file named by itself is one whatever its suffix."""

LARGEST_FILE = 256_000_000
"""Bytes; larger files are not read into memory."""


class ImagesAndTexts(Protocol):
    """Images and texts to be encoded and compared."""

    captions: list[str]
    tokens: BatchTokenizer

    def __len__(self) -> int:
        """The number of images."""
        ...

    def images(self, rows: Sequence[int]) -> Tensor:
        """uint8 [B, 3, H, W]."""
        ...

    def texts(self, captions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """text_BL int64 and valid_BL bool of the captions with these indices."""
        return self.tokens.batch([self.captions[index] for index in captions])


class Pictures(ImagesAndTexts):
    """Picture files and sentences, not paired with each other.

    Args:
        tokenizer: a fast transformers tokenizer.
        text_length: most tokens of a sentence.

    Attributes:
        stand_ins: for files that cannot be read; None = raise at once.
    """

    def __init__(
        self, paths: Sequence[Path], captions: Sequence[str], tokenizer: Any, text_length: int, image_size: int
    ) -> None:
        self.paths, self.captions = list(paths), list(captions)
        self.tokens, self.image_size = BatchTokenizer(tokenizer, text_length), image_size
        self.stand_ins: StandIns | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def images(self, rows: Sequence[int]) -> Tensor:
        """uint8 [B, 3, H, W], resized without a crop; raises `UserError` naming a file that is not a picture."""
        return torch.from_numpy(np.concatenate([self._views(row) for row in rows]))

    def _views(self, row: int) -> list[np.ndarray]:
        read = partial(self._read, row)
        return self.stand_ins.or_read(read, 1, self.image_size) if self.stand_ins else read()

    def _read(self, row: int) -> list[np.ndarray]:
        return [eval_view(Decoded(read_picture(self.paths[row])), self.image_size)]


def read_picture(path: Path) -> Image.Image:
    """Decode a file in full, to RGB.

    Raises:
        UserError: it cannot be read, is too large or is not a picture.
    """
    try:
        if not path.is_file():  # a device or a pipe might never end
            raise UserError(f"No picture at {path}: give the path of a JPEG, PNG, WebP, TIFF or other image file.")
        if path.stat().st_size > LARGEST_FILE:
            raise BadImage(f"{path.stat().st_size} bytes are more than the limit of {LARGEST_FILE}")
        return load_image(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): give a file that you can read.") from None
    except BadImage as error:
        raise UserError(f"{path} is not a picture that can be shown ({error}): leave it out or resave it.") from None


def find_pictures(names: Sequence[str]) -> list[Path]:
    """The files that are named, and the pictures in and below the folders that are named, each folder's sorted by path.

    Raises:
        UserError: nothing is at a path, or a folder holds no picture.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
            if not inside:
                raise UserError(f"{path} holds no picture ({', '.join(SUFFIXES)}): give pictures, or a folder of them.")
            found += sorted(inside)
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"No picture at {path}: give image files, or a folder of them.")
    return found


class ClassFolder:
    """Pictures in a folder for each class, `FOLDER/class name/any.jpg`, sorted by path.

    Attributes:
        names: of the classes, which are those of their folders, with spaces for underscores.
        paths, label_N: every picture, and its class.

    Raises:
        UserError: there are fewer than two such folders, or one holds no picture.
    """

    def __init__(self, folder: str, limit: int = 0) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise UserError(f"No folder at {folder}: give one that has a folder of pictures for each class.")
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if len(folders) < 2:
            raise UserError(f"{folder} has {len(folders)} folders: it must have one folder of pictures for each class.")
        self.names = [path.name.replace("_", " ") for path in folders]
        files = [find_pictures([str(path)]) for path in folders]
        paths = [file for of_class in files for file in of_class]
        label_N = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files])
        kept = np.linspace(0, len(paths) - 1, min(limit or len(paths), len(paths))).round().astype(np.int64)
        self.paths, self.label_N = [paths[index] for index in kept], label_N[kept]
