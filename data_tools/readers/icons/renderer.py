"""A process that draws SVG files for another one, within limits of its own; as a script it imports nothing of ours.

Each request is a length in 4 bytes and that many bytes of SVG; the answer is a length and a PNG, or 0 if nothing can be
drawn. A drawing that takes more processor time or memory than allowed ends the process.
"""

from __future__ import annotations

import resource
import signal
import struct
import sys

MEMORY = 2_000_000_000  # bytes of address space


def main(seconds: float) -> None:
    import resvg_py

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(4):
        svg = source.read(*struct.unpack("<I", head)).decode("utf-8", "replace")
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        try:
            png = bytes(resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True))
        except BaseException:  # a panic of Rust is not an Exception
            png = b""
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        sink.write(struct.pack("<I", len(png)) + png)
        sink.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]))
