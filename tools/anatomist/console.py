"""What a person sees while a command works: a progress bar on stderr, and a stdout that only the answer reaches."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .technique import Progress


@contextmanager
def bar() -> Iterator[Progress]:
    """A progress function that draws a bar on stderr and leaves nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    share = TextColumn("{task.percentage:>3.0f}%")
    columns = (TextColumn("{task.description}"), BarColumn(), share, TimeElapsedColumn())
    # where nobody watches, it would leave an empty line
    seen = Console(stderr=True)
    with Bar(*columns, console=seen, transient=True, disable=not seen.is_terminal) as drawn:
        task = drawn.add_task("starting", total=None)

        def progress(done: float, total: float, what: str) -> None:
            drawn.update(task, completed=done, total=total or None, description=what)

        yield progress


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what is written to stdout meanwhile, also below Python, to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
