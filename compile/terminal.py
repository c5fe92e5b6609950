"""What the workshop's commands share at the terminal: bars, one JSON document, an ending that tidies up."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from calibration.threshold import CalibrationError
from compile.job import Progress as Tick
from compile.wishes import WishError
from edge.errors import BeltlineError


class Interruption(KeyboardInterrupt):
    """SIGINT or SIGTERM, with its number."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted, nothing was written")
        self.number = number


@contextmanager
def ended_well(*, as_json: bool, work: Path | None = None) -> Iterator[Tick]:
    """Show bars while the work is done, let SIGINT and SIGTERM unwind it, and end with the right message and exit code.

    Args:
        as_json: no bars.
        work: the folder from which the same command goes on after an interruption.

    """
    try:
        with _unwinding(), bars(enabled=not as_json) as tick:
            yield tick
    except (BeltlineError, CalibrationError, OSError, Interruption) as error:
        raise _for_the_terminal(error, work) from error


def write_json(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def _for_the_terminal(error: BaseException, work: Path | None) -> BaseException:
    match error:
        case Interruption():
            kept = f"; the same command goes on from {work}" if work and work.exists() else ""
            ended = BeltlineError(f"{error}{kept}")
            ended.exit_code = 128 + error.number
            return ended
        case WishError():
            return typer.BadParameter(str(error))
        case CalibrationError():
            return BeltlineError(str(error))
    return error


@contextmanager
def _unwinding() -> Iterator[None]:
    """Let SIGINT and SIGTERM unwind what was begun: scratch files and the processes of fits go."""

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not stop the tidying up
        raise Interruption(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def bars(*, enabled: bool) -> Iterator[Tick]:
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not enabled) as shown:
        tasks: dict[str, object] = {}

        def tick(step: str, done: int, of: int) -> None:
            if step not in tasks:
                tasks[step] = shown.add_task(step, total=of)
            shown.update(tasks[step], completed=done, total=of)  # type: ignore[arg-type]

        yield tick
