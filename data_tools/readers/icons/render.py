"""Drawing untrusted SVGs: what they may contain, and a process beside this one that draws them."""

from __future__ import annotations

import atexit
import importlib.util
import io
import re
import struct
import subprocess
import sys
from pathlib import Path

from PIL import Image

from mvlm.errors import UserError

from ..images import Refused

MAX_SVG = 131_072
"""Characters: 1 in 6,000 of the package's drawings is longer."""

ELEMENTS = {
    *("svg", "g", "defs", "symbol", "use", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon"),
    *("clipPath", "mask", "marker", "linearGradient", "radialGradient", "stop", "filter", "title", "desc"),
    *("feBlend", "feColorMatrix", "feComposite", "feFlood", "feGaussianBlur", "feMerge", "feMergeNode", "feOffset"),
}
"""All that drawings need; nothing that reads files (image, feImage) or fonts (text), and no scripts or entities."""

ANIMATIONS = {"animate", "animateMotion", "animateTransform", "set"}
"""A still picture shows only how these begin, which is often nothing."""

TAG = re.compile(r"<\s*/?\s*([^\s/>]*)")
REFERENCE = re.compile(r"""href\s*=\s*(?!["']\s*\#)|url\(\s*(?!["']?\#)""", re.IGNORECASE)


def check(svg: str) -> None:
    """Raises `Refused` unless an SVG is small, still, and refers to nothing outside itself."""
    if len(svg) > MAX_SVG:
        raise Refused("drawing is too large")
    tags = set(TAG.findall(svg))
    if tags & ANIMATIONS:
        raise Refused("drawing is animated")
    if not tags <= ELEMENTS:
        raise Refused("drawing has an element that is not drawn")
    if REFERENCE.search(svg):
        raise Refused("drawing refers to another file")


class Renderer:
    """Draws with `resvg` in a process of its own, which is started when needed, and again after it has died.

    Args:
        seconds: of processor time that one drawing may take; most take 0.001 to 0.003.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        if importlib.util.find_spec("resvg_py") is None:
            raise UserError("Icons are drawn by resvg-py, which is not installed: pip install 'mvlm[icons]'.")
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def png(self, svg: str) -> bytes:
        """The drawing on white; raises `Refused`."""
        check(svg)
        data = svg.encode("utf-8", "replace")
        answer = self._ask(struct.pack("<I", len(data)) + data)
        with Image.open(io.BytesIO(answer)) as image:
            if image.convert("RGB").getcolors(1) is not None:
                raise Refused("drawing shows nothing")
        return answer

    def _ask(self, request: bytes) -> bytes:
        if self._process is None:
            script = str(Path(__file__).with_name("renderer.py"))
            command = [sys.executable, "-P", script, str(self._seconds)]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died: there is no answer either
        head = self._process.stdout.read(4)
        size = struct.unpack("<I", head)[0] if len(head) == 4 else 0
        answer = self._process.stdout.read(size)
        if len(head) < 4 or len(answer) < size:
            self.close()
            raise Refused("drawing takes too much time or memory")
        if not size:
            raise Refused("drawing cannot be rendered")
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.communicate()
