"""Standard output and standard error whose reader is gone, as with `| head`, or whose disk is full."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

STDOUT = 1
CLOSED = "Standard output was closed before everything was written."


def reader_is_gone(error: Exception) -> bool:
    """Whether an error means that nobody reads standard output; what is still to be printed is then dropped."""
    output = select.poll()
    output.register(STDOUT, 0)
    if not isinstance(error, BrokenPipeError) or not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return True


@contextmanager
def output_errors_ignored() -> Iterator[None]:
    """Keep output in the block from raising errors, whatever becomes of the terminal, pipe or disk that it goes to."""
    streams = sys.stdout, sys.stderr
    out, err = (cast(TextIO, _ErrorsIgnored(stream)) for stream in streams)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield
    finally:
        for stream in streams:
            drop_unwritable(stream)


def drop_unwritable(stream: TextIO) -> None:
    """Drop buffered output that cannot be written, on which the interpreter would exit with a code of its own."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        stream.flush()


class _ErrorsIgnored:
    """A stream that ignores errors."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()
