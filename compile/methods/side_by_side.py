"""Fits that do not depend on each other, side by side in threads; the results are those of one after another.

A fit computes on one thread (`compile.fitting`), so one that waits for no other leaves a processor idle. Products of
matrices hold no interpreter lock. On a GPU they take turns: it is busy with one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial
from threading import Event
from typing import TypeVar

import torch

from compile.job import Progress
from compile.methods.checkpoint import apart

Fitted = TypeVar("Fitted")


def side_by_side(fits: Sequence[Callable[[Progress], Fitted]], progress: Progress | None) -> list[Fitted]:
    """Run all fits and give what they give, in their order.

    Args:
        fits: each is given where to tell its progress, which it does often: there it ends when another has failed.
            None may draw from torch's global generator.
        progress: told of the steps of all together.

    Raises:
        FitError: of the first that failed.

    """
    stop = Event()
    done = [0] * len(fits)

    def tell(turn: int, what: str, own: int, of: int) -> None:
        if stop.is_set():
            raise _StoppedError
        done[turn] = own
        if progress is not None:
            progress(what, sum(done), len(fits) * of)

    def run(turn: int) -> Fitted:
        with apart(f"side {turn}"):
            return fits[turn](partial(tell, turn))

    if torch.cuda.is_available():
        return [run(turn) for turn in range(len(fits))]
    with ThreadPoolExecutor(len(fits)) as pool:
        try:
            running = [pool.submit(copy_context().run, run, turn) for turn in range(len(fits))]
            wait(running, return_when=FIRST_EXCEPTION)
        finally:  # what still runs now is of no use: one failed, or somebody wants to stop
            stop.set()
    reasons = [each.exception() for each in running]
    for reason in reasons:
        if reason is not None and not isinstance(reason, _StoppedError):
            raise reason
    return [each.result() for each in running]


class _StoppedError(Exception):
    """Another fit failed."""
