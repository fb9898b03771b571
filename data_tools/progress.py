"""A progress bar on standard error, if that is a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

REDRAW = 0.1  # seconds


@contextmanager
def progress(title: str, size: int, position: Callable[[], int] | None = None) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with each record's image bytes; `position()` out of `size` is how far the work is.

    Without `position`, `size` is the number of records.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=max(size, 1), rate="")
        start = shown = time.monotonic()
        records = total = 0

        def advance(image_bytes: int) -> None:
            nonlocal records, total, shown
            records, total = records + 1, total + image_bytes
            now = time.monotonic()
            if now - shown >= REDRAW:
                shown = now
                rate = f"{records:,} records, {records / (now - start):,.0f}/s, {total / 1e6:,.1f} MB"
                bar.update(task, completed=position() if position else records, rate=rate)

        yield advance
        bar.update(task, completed=max(size, 1))
