"""Distillation: any fitted teacher into the lightweight VarAD, on good pictures and on painted defects.

The student learns what the teacher says, not where defects were painted: its map, its score, and its tokens where it
has any (a method `tokens(features) -> [B, C, h, w]` at stride 16; INP-Former++ gives its residual). VarAD itself is
fitted as ever, on good pictures alone, and stays as it is. The teacher may see more strides than the student does. What
it says is kept on disk: it is asked once, and every fold of a cross-fit reads its own pictures' answers.
Ours; no paper's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compile.anomaly_graph import AnomalyHead
from compile.bundle_writer import replacing
from compile.features import FeatureFiles, on_disk, open_rows
from compile.job import Progress
from compile.methods import FitError
from compile.methods.descent import batches, computing, descend, device, one_cycle, read
from compile.methods.student import WIDTH, Student
from compile.methods.varad import VarAD
from compile.methods.varad_fit import STEPS as VARAD_STEPS
from compile.methods.varad_fit import fit_varad

STEPS = 300  # at most
PASSES, LEAST_STEPS = 3, 150  # over few painted pictures
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
        scores: float32 [n].
        maps: float32 [n, h, w] at stride 8.
        tokens: float32 [n, C, h / 2, w / 2], or None where it has none.

    """

    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    tokens: NDArray[np.float32] | None = None


def read_lesson(files: FeatureFiles, rows: NDArray[np.int64]) -> Lesson:
    """What a teacher said of chosen rows of the pictures that it was asked about."""
    return Lesson(*open_rows(files, rows))


def teach(
    head: AnomalyHead,
    features: Sequence[NDArray[Any]],
    folder: Path,
    tick: Callable[[int, int], None] | None = None,
) -> FeatureFiles:
    """Ask a teacher about pictures, unless that was done before the process was killed.

    Args:
        head: the teacher's, whose map has twice the cells of stride 8 a side.
        features: its trunk maps, [n, C, h, w] per stride.
        folder: where its answers are kept; made.
        tick: told what is done.

    Raises:
        ScratchError: there is no room.

    """
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "asked.json"
    if done.exists():
        shapes = [tuple(shape) for shape in json.loads(done.read_text("utf-8"))]
        return FeatureFiles([folder / f"{i}.bin" for i in range(len(shapes))], shapes)
    tokens = getattr(head.model, "tokens", None)
    said: list[NDArray[Any]] = []
    count = features[0].shape[0]
    with computing(head):
        for start in range(0, count, CHUNK):
            maps = read(features, slice(start, start + CHUNK))
            score, heat = head(*maps, torch.ones(len(maps[0]), *head.map_size).to(device()))
            found = [score, _at_cells(heat)] + ([tokens(maps)] if tokens is not None else [])
            if not said:
                shapes = [(count, *each.shape[1:]) for each in found]
                files = FeatureFiles([folder / f"{i}.bin" for i in range(len(shapes))], shapes)
                said = [on_disk(path, np.dtype(np.float32), own) for path, own in zip(files.paths, shapes, strict=True)]
            for array, each in zip(said, found, strict=True):
                array[start : start + CHUNK] = each.cpu().numpy()
            if tick:
                tick(min(start + CHUNK, count), count)
    for array in said:
        cast("np.memmap[Any, Any]", array).flush()
    with replacing(done, json.dumps(shapes).encode()):
        pass
    return files


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
        painted: the same of m pictures with painted defects, each in one rendering.
        good: what the teacher says of the n good pictures.
        odd: of the m painted ones.
        seed: fixes the result, on one thread to the bit.
        steps: of either fit, at most.
        progress: called with (what, done, of).

    Raises:
        FitError: maps are not finite, or a fit diverged.

    """
    varad = fit_varad(features, seed=seed, steps=VARAD_STEPS if steps is None else steps, progress=progress)
    count = odd.scores.shape[0]
    own = min(STEPS, max(LEAST_STEPS, PASSES * count // BATCH))
    steps = own if steps is None else min(own, steps)
    usual, surprises = _surprises(varad, features, painted)
    sides = list(zip((features, painted), surprises, (good, odd), strict=True))
    units = _units(good)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = Student(varad, usual, [tuple(each.shape[1:]) for each in features]).train()
        _scale(student, features)
        guess = nn.Conv2d(WIDTH, 1 if good.tokens is None else good.tokens.shape[1], 1)  # not shipped
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
                asked = np.array(rows) % lesson.scores.shape[0]
                terms.append(_term(found, lesson.maps[asked] / units[0]) * MAP)
                terms.append(_term(_score(found), lesson.scores[asked] / units[1]) * SCORE)
                if lesson.tokens is not None:
                    said = functional.avg_pool2d(guess(seen), 2)
                    terms.append(_term(said, lesson.tokens[asked]) * TOKENS)
            return torch.stack(terms).sum() / len(sides)

        order = zip(batches(features[0].shape[0], BATCH, seed), batches(count, BATCH, seed + 1), strict=False)
        schedule = one_cycle(optimiser, RATE, steps)
        descend(model, optimiser, schedule, order, loss, steps=steps, what="fit student", mixed=True, progress=progress)
    return student.eval().requires_grad_(requires_grad=False)


def _units(good: Lesson) -> tuple[np.float32, np.float32]:
    """Give the largest value of the map of a usual good picture, and its score: what the teacher's words are in."""
    largest = [good.maps[i].max() for i in range(good.scores.shape[0])]
    units = np.float32(np.median(largest)), np.float32(np.median(good.scores[:]))
    if not min(units) > 0:
        raise FitError(
            "the teacher finds nothing odd in any good picture and so has no scale to teach. Take another teacher, "
            "more good parts or a larger size."
        )
    return units


def _term(found: Tensor, said: NDArray[np.float32]) -> Tensor:
    return functional.smooth_l1_loss(found, torch.from_numpy(said).to(found.device), beta=BEND)


def _score(maps: Tensor) -> Tensor:
    return maps.flatten(1).topk(TOP, 1).values.mean(1)


def _at_cells(heat: Tensor) -> Tensor:
    """Pixels [B, 2h, 2w] to cells [B, h, w], whose centres lie on the left and upper edges of their spans."""
    moved = functional.pad(heat[:, None], (1, 0, 1, 0), mode="replicate")[:, 0, :-1, :-1]
    return functional.avg_pool2d(moved, 2)


@torch.no_grad()
def _surprises(
    varad: VarAD, features: Sequence[NDArray[Any]], painted: Sequence[NDArray[Any]]
) -> tuple[Tensor, list[list[Tensor]]]:
    """Give VarAD's mean discrepancy of each hierarchy on good pictures, and the surprises of all by it."""
    found = [_discrepancies(varad, each) for each in (features, painted)]
    usual = torch.stack([each.mean() for each in found[0]])
    return usual, [[each / usual[i] for i, each in enumerate(maps)] for maps in found]


def _discrepancies(varad: VarAD, features: Sequence[NDArray[Any]]) -> list[Tensor]:
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
