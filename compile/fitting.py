"""Fit several heads at once: one process each, on one thread each, and on one GPU each where there are some.

One thread makes a fit the same to the bit everywhere, and a step is too short to share: on two threads of a busy
machine the threads wait for each other for most of the time (measured: 14 times the processor time).
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compile.backbones.choice import Backbone
from compile.features import FeatureFiles, open_rows
from compile.job import Progress
from compile.methods.checkpoint import resumable
from compile.methods.distil import read_lesson
from compile.methods.method import Samples
from compile.methods.registry import find_method
from compile.standardise import Spread, measure_spread

POLL_S = 0.2

_told: Queue[tuple[str, int, int]] | None = None  # of a worker process: where it tells its progress


@dataclass(frozen=True, slots=True)
class Painted:
    """Maps of pictures with painted defects, and where they are painted."""

    files: FeatureFiles
    rows: NDArray[np.int64]
    covered: NDArray[np.float32]  # of these rows in one rendering; the others follow in the same order


@dataclass(frozen=True, slots=True)
class Answers:
    """What a teacher said of the good pictures of a fit, and of the painted ones: once each, not per rendering."""

    good: FeatureFiles
    good_rows: NDArray[np.int64]
    painted: FeatureFiles
    painted_rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fit:
    """One fit to do: on which rows of which files."""

    step: str  # its name, for people
    method: str
    backbone: Backbone
    files: FeatureFiles
    rows: NDArray[np.int64]
    spread_rows: NDArray[np.int64] | None  # of good pictures whose discrepancies are measured then
    seed: int
    steps: int | None  # at most; None for the method's own
    checkpoints: Path  # where it keeps them
    painted: Painted | None = None  # for a method that learns from them
    answers: Answers | None = None  # for a student
    classes: NDArray[np.int64] | None = None  # of these rows, where there are several


class Fitted(NamedTuple):
    model: nn.Module
    spread: Spread | None
    steps: int  # of optimisers


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit_all(fits: Sequence[Fit], processes: int, progress: Progress) -> list[Fitted]:
    """Fit every head, `processes` at a time, or as many as there are GPUs; the results do not depend on how many.

    Raises:
        FitError: a fit diverged or collapsed.

    """
    processes = torch.cuda.device_count() or processes
    if processes < 2 or len(fits) < 2:
        return [_fit(each, progress) for each in fits]
    context = multiprocessing.get_context("spawn")
    told: Queue[tuple[str, int, int]] = context.Queue()
    started = context.Value("i", 0)
    workers = min(processes, len(fits))
    with ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(told, started, os.getpid())
    ) as pool:
        try:
            running = [pool.submit(_work, each) for each in fits]
            while not all(each.done() for each in running):
                with suppress(queue.Empty):
                    progress(*told.get(timeout=POLL_S))
        except BaseException:  # leaving the pool waits for the fits, which nobody wants any more
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        while not told.empty():
            progress(*told.get())
        return [cast(Fitted, pickle.loads(each.result())) for each in running]  # noqa: S301 - from our own worker


def _start_worker(told: Queue[tuple[str, int, int]], started: Synchronized[int], parent: int) -> None:
    global _told  # noqa: PLW0603 - a queue reaches a worker only at its start
    _told = told
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; who started the worker ends it
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        with started.get_lock():
            torch.cuda.set_device(started.value)
            started.value += 1


def _end_with(parent: int) -> None:
    """End when whoever wanted the fit was killed and can end nobody."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(fit: Fit) -> bytes:
    assert _told is not None
    told = _told
    return pickle.dumps(_fit(fit, lambda *news: told.put(news)))


def _fit(fit: Fit, progress: Progress) -> Fitted:
    method = find_method(fit.method, fit.backbone)
    steps: dict[str, int] = {}

    def tell(what: str, done: int, of: int) -> None:
        if what.startswith("fit"):
            steps[what] = of
        progress(fit.step if what == "fit" else f"{fit.step}, {what}", done, of)

    samples = Samples(open_rows(fit.files, fit.rows), classes=fit.classes)
    if fit.painted is not None:
        painted = open_rows(fit.painted.files, fit.painted.rows)
        samples = replace(samples, painted=painted, covered=fit.painted.covered)
    if (said := fit.answers) is not None:
        lessons = read_lesson(said.good, said.good_rows), read_lesson(said.painted, said.painted_rows)
        samples = replace(samples, lessons=lessons)
    with resumable(fit.checkpoints):
        model = method.fit(samples, fit.seed, fit.steps, tell)
    spread = None
    if method.standardised and fit.spread_rows is not None:
        spread = measure_spread(model, open_rows(fit.files, fit.spread_rows))
    return Fitted(model, spread, sum(steps.values()))
