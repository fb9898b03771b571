"""What decides the bytes of a corpus besides its source and its options."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("pyarrow", "pillow", "simplejpeg", "numpy")
"""Their versions decide the bytes written, as does the code beside this file."""


def versions() -> dict[str, str]:
    """The versions of the libraries and of this package's code."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    return {name: version(name) for name in LIBRARIES} | {"code": code.hexdigest()}
