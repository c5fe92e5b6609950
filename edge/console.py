"""Where commands print: as wide as the terminal, and wide enough for every word where there is none."""

from __future__ import annotations

import os

from rich.console import Console

PIPE_COLUMNS = 240  # a log or a pipe has no width of its own; 80 would cut the words of a table


def console() -> Console:
    """The console for standard output."""
    found = Console(highlight=False)
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=PIPE_COLUMNS)
