"""Distillation: any fitted teacher into the lightweight VarAD, on good pictures and on painted defects.

The student learns what the teacher says, not where defects were painted: its map, its score, and its tokens where it
has any (a method `tokens(features) -> [B, C, h, w]` at stride 16; INP-Former++ gives its residual). VarAD itself is
fitted as ever, on good pictures alone, and stays as it is. The teacher may see more strides than the student does.
Ours; no paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compile.anomaly_graph import AnomalyHead
from compile.features import Rows
from compile.job import Progress
from compile.methods import FitError
from compile.methods.descent import batches, descend, device, one_cycle, read
from compile.methods.student import WIDTH, Student
from compile.methods.varad_fit import STEPS as VARAD_STEPS
from compile.methods.varad_fit import fit_varad
from compile.standardise import Standardised, measure_spread

STEPS = 300
BATCH = 8  # of good pictures, and as many with painted defects
RATE = 2e-3
NOISE = 0.1  # of a channel's deviation
MAP, SCORE, TOKENS = 4.0, 0.5, 0.3  # weights of the terms
BEND = 0.5  # where the loss turns from square to absolute
TOP = 4  # cells whose mean stands for the student's score
CHUNK = 8
MEASURED = 100  # good pictures that the readout's inputs are scaled on


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a teacher says of n pictures.

    Args:
        maps: float32 [n, h, w] at stride 8.
        scores: float32 [n].
        tokens: float32 [n, C, h / 2, w / 2], or None where it has none.

    """

    maps: Tensor
    scores: Tensor
    tokens: Tensor | None


@torch.no_grad()
def teach(head: AnomalyHead, features: Sequence[NDArray[Any]], tick: Callable[[int, int], None] | None) -> Lesson:
    """Ask a teacher about pictures.

    Args:
        head: the teacher's, whose map has twice the cells of stride 8 a side.
        features: its trunk maps, [n, C, h, w] per stride.
        tick: told what is done.

    """
    tokens = getattr(head.model, "tokens", None)
    found: list[tuple[Tensor, ...]] = []
    count = features[0].shape[0]
    for start in range(0, count, CHUNK):
        maps = [torch.from_numpy(np.asarray(each[start : start + CHUNK], np.float32)) for each in features]
        score, heat = head(*maps, torch.ones(len(maps[0]), *head.map_size))
        said = [tokens(maps)] if tokens is not None else []
        found.append((_at_cells(heat), score, *said))
        if tick:
            tick(min(start + CHUNK, count), count)
    maps_, scores, *rest = (torch.cat(each) for each in zip(*found, strict=True))
    return Lesson(maps_, scores, rest[0] if rest else None)


def fit_student(
    features: Sequence[NDArray[Any]],
    painted: Sequence[NDArray[Any]],
    good: Lesson,
    odd: Lesson,
    *,
    seed: int,
    steps: int | None = None,
    progress: Progress | None = None,
) -> Student:
    """Fit VarAD, then its readout on what the teacher said.

    Args:
        features: of good pictures, [r n, C, h, w] for strides 8 and 16: r renderings of n pictures, one after another.
        painted: the same of pictures with painted defects.
        good: what the teacher says of the n good pictures.
        odd: of the painted ones.
        seed: fixes the result, on one thread to the bit.
        steps: of either fit, at most.
        progress: called with (what, done, of).

    Raises:
        FitError: maps are not finite, or a fit diverged.

    """
    varad = fit_varad(features, seed=seed, steps=VARAD_STEPS if steps is None else steps, progress=progress)
    standardised = Standardised(varad, [measure_spread(varad, features)]).eval()
    steps = STEPS if steps is None else min(STEPS, steps)
    count = len(odd.maps)
    rows = np.arange(count)
    turns = rows + count * (rows % (painted[0].shape[0] // count))  # of each painted picture one rendering will do
    painted = [cast("NDArray[Any]", Rows(each, turns)) for each in painted]
    sides = [(features, _surprise(standardised, features), good), (painted, _surprise(standardised, painted), odd)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = Student(standardised, [tuple(each.shape[1:]) for each in features]).train()
        _scale(student, features)
        guess = nn.Conv2d(WIDTH, 1 if good.tokens is None else good.tokens.shape[1], 1)  # not shipped
        unit = good.maps.flatten(1).amax(1).median()
        usual = good.scores.median()
        if not (unit > 0 and usual > 0):
            raise FitError(
                "the teacher finds nothing odd in any good picture and so has no scale to teach. Take another teacher, "
                "more good parts or a larger size."
            )
        model = nn.ModuleList([student, guess])
        optimiser = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], RATE)

        def loss(chosen: tuple[list[int], list[int]]) -> Tensor:
            terms = []
            for rows, (maps, surprise, lesson) in zip(chosen, sides, strict=True):
                inputs = [
                    each + NOISE * getattr(student.readout, f"deviation_{i}") * torch.randn(each.shape).to(each.device)
                    for i, each in enumerate(read(maps, rows))
                ]
                found, seen = student.corrected(inputs, [each[rows].to(device()) for each in surprise])
                asked = torch.tensor(rows) % len(lesson.maps)
                terms.append(_term(found, lesson.maps[asked] / unit) * MAP)
                terms.append(_term(_score(found), lesson.scores[asked] / usual) * SCORE)
                if lesson.tokens is not None:
                    said = functional.avg_pool2d(guess(seen), 2)
                    terms.append(_term(said, lesson.tokens[asked]) * TOKENS)
            return torch.stack(terms).sum() / len(sides)

        order = zip(batches(features[0].shape[0], BATCH, seed), batches(count, BATCH, seed + 1), strict=False)
        schedule = one_cycle(optimiser, RATE, steps)
        descend(model, optimiser, schedule, order, loss, steps=steps, what="fit student", mixed=True, progress=progress)
    return student.eval().requires_grad_(requires_grad=False)


def _term(found: Tensor, said: Tensor) -> Tensor:
    return functional.smooth_l1_loss(found, said.to(found.device), beta=BEND)


def _score(maps: Tensor) -> Tensor:
    return maps.flatten(1).topk(TOP, 1).values.mean(1)


def _at_cells(heat: Tensor) -> Tensor:
    """Pixels [B, 2h, 2w] to cells [B, h, w], whose centres lie on the left and upper edges of their spans."""
    moved = functional.pad(heat[:, None], (1, 0, 1, 0), mode="replicate")[:, 0, :-1, :-1]
    return functional.avg_pool2d(moved, 2)


@torch.no_grad()
def _surprise(varad: Standardised, features: Sequence[NDArray[Any]]) -> list[Tensor]:
    found = [
        varad([torch.from_numpy(np.asarray(each[start : start + CHUNK], np.float32)) for each in features])
        for start in range(0, features[0].shape[0], CHUNK)
    ]
    return [torch.cat(each) for each in zip(*found, strict=True)]


def _scale(student: Student, features: Sequence[NDArray[Any]]) -> None:
    chosen = np.unique(np.linspace(0, features[0].shape[0] - 1, MEASURED).astype(int))
    for i, each in enumerate(features):
        known = torch.from_numpy(np.asarray(each[chosen], np.float32))
        getattr(student.readout, f"mean_{i}").copy_(known.mean((0, 2, 3))[:, None, None])
        getattr(student.readout, f"deviation_{i}").copy_(known.std((0, 2, 3))[:, None, None] + 1e-4)
