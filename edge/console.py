"""Where commands print: as wide as the terminal, and wide enough for every word where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID

PIPE_COLUMNS = 240  # a log or a pipe has no width of its own; 80 would cut the words of a table


def console() -> Console:
    """The console for standard output."""
    found = Console(highlight=False)
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=PIPE_COLUMNS)


@contextmanager
def building() -> Iterator[Callable[[str, int, int], None]]:
    """Bars for the phases of what takes minutes, on a terminal: tell it phase, steps done and steps in all."""
    errors = Console(stderr=True, highlight=False)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bars:
        rows: dict[str, TaskID] = {}

        def tick(phase: str, done: int, steps: int) -> None:
            if phase not in rows:
                rows[phase] = bars.add_task(phase, total=steps)
            bars.update(rows[phase], completed=done, total=steps, visible=done < steps)

        yield tick
