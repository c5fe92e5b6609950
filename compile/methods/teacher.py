"""A student's teacher is fitted, and asked about the pictures that it was fitted on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from compile.anomaly_graph import MAP_LIMIT
from compile.features import FeatureFiles
from compile.job import Progress
from compile.methods.distil import teach
from compile.methods.method import Method, Samples, fit_alone, rows_of
from compile.methods.patchcore import BANK, HeldOut, fit_patchcore


def ask(
    teacher: Method, samples: Samples, folder: Path, *, seed: int, steps: int | None, progress: Progress | None
) -> tuple[FeatureFiles, FeatureFiles]:
    """Fit a teacher and ask it about the good and the painted pictures that it was fitted on.

    Args:
        teacher: of the registry.
        samples: maps of its levels.
        folder: where its answers are kept, for `read_lesson`.
        seed: of its fit.
        steps: of its fit, at most.
        progress: called with (what, done, of).

    """
    tell = None if progress is None else partial(_tell_teacher, progress)
    if teacher.bank:
        teacher = replace(teacher, fit=_fit_halves)
    model = fit_alone(teacher, samples, seed, steps, tell)
    side = 2 * max(samples.good[teacher.levels.index(8)].shape[2:])
    shipped = min(MAP_LIMIT, 2 * side)  # the side of the map that the smoothing is meant for
    asked = replace(teacher, smoothing=teacher.smoothing * side / shipped)
    head = asked.head(model, samples.good, (side, side))
    told = None if progress is None else partial(progress, "ask the teacher")
    return teach(head, samples.good, folder / "good", told), teach(head, samples.painted, folder / "painted", told)


def _fit_halves(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    """Fit banks that a picture is new to one of; neighbours, which often show one part, go into the same."""
    del steps
    halves = np.array_split(np.arange(samples.good[0].shape[0]), 2)
    banks = [fit_patchcore(rows_of(samples.good, own), seed=seed, bank=BANK // 2, progress=progress) for own in halves]
    return HeldOut(banks).eval()


def _tell_teacher(progress: Progress, what: str, done: int, of: int) -> None:
    progress(f"{what} of the teacher", done, of)
