"""Fits GLFM: whiten, adapt the extractor to pseudo-anomalies, fill the banks (arXiv 2505.07375).

The paper's, by its public code as read: every training cloud is stretched, and extractor and a linear head learn to
tell its moved points by focal loss (gamma 2, both classes) and Dice (smooth 1) of the anomaly's probability; Adam at
1e-4, 100 passes of 100 clouds, with two falls of the rate that its script crashes at. The banks hold good clouds alone,
and the head is left behind. K, the number of entries, is 10 for ten classes, 3 for twelve and 1 for one.

Ours: batches of cells of all scans; the rate and its cycle; K is the number of classes that the samples name; k-means,
as in the paper, where the code has k-centre.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from compile.job import Progress
from compile.methods import FitError
from compile.methods.cells import describe_surface, measure_directions
from compile.methods.descent import batches, descend, device, one_cycle
from compile.methods.glfm import CELL, GLFM, Extractor, object_size
from compile.methods.glfm_banks import Choice, choose_entries, fill_banks
from compile.methods.stretching import stretch_geometry

POOL = 200_000  # cells that the extractor is fitted on
STEPS, BATCH, RATE, DECAY = 400, 4096, 1e-3, 1e-4
FOCUS = 2.0
SMOOTHING = 1e-5  # of the focal loss's labels
SURE = 0.95  # of a class's own scans: less is worth a warning
HALF = 0.5  # of a cell's places: then it counts as moved

log = logging.getLogger(__name__)


class Stretches(NamedTuple):
    """Descriptions of cells [n, S] of stretched scans, and 1 where they moved, else 0 [n]."""

    raw: Tensor
    moved: Tensor


def fit_glfm(
    features: Sequence[NDArray[Any]],
    classes: NDArray[np.int64] | None = None,
    *,
    seed: int,
    steps: int | None = None,
    entries: int | None = None,
    choice: Choice = "k-means",
    progress: Progress | None = None,
) -> GLFM:
    """Fit on maps of good scans: `scan` [n, H, W, 3] and `geometry` [n, G, H, W].

    Args:
        features: of the front end.
        classes: int64 [n]; how many there are says how many entries, and how many go to their own entry is logged. The
            model never sees them.
        seed: fixes the result, on one thread to the bit.
        steps: of the optimiser, at most; 0 leaves the extractor as it is.
        entries: K, where it is not the number of classes; 1 is without routing.
        choice: of the entries.
        progress: called with (what, done, of).

    Raises:
        FitError: no cell has points, maps are not finite, or the fit diverged.

    """
    scan, geometry = features
    steps = STEPS if steps is None else min(STEPS, steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        good, stretches = _describe(scan, geometry, seed, generator, progress)
        if not len(good):
            raise FitError("no cell of the scans has points to fit on. Look at the scans: has each a surface?")
        extractor = Extractor(good.shape[1])
        measure_directions(extractor.whiten, good)
        if steps:
            adapt(extractor, stretches, seed=seed, steps=steps, progress=progress)
        model = GLFM(extractor, geometry.shape[2:]).eval().requires_grad_(requires_grad=False)
        local, whole = _objects(model, good, features)
        number = entries or (1 if classes is None else len(np.unique(classes)))
        chosen = choose_entries(whole, number, choice, generator)
        model.banks = fill_banks(chosen, whole, local, generator, progress)
    if classes is not None:
        routes = model.banks.route(whole).numpy()
        _tell(routing_accuracy(routes, classes, routes, classes))
    return model


def adapt(
    extractor: Extractor, stretches: Stretches, *, seed: int, steps: int, progress: Progress | None = None
) -> None:
    """Teach an extractor to tell moved cells; its whitening stays."""
    learned = [*extractor.blocks.parameters(), *extractor.judge.parameters()]
    optimiser = torch.optim.Adam(learned, RATE, weight_decay=DECAY)

    def objective(rows: list[int]) -> Tensor:
        raw, moved = (each[rows].to(device()) for each in stretches)
        return adaptation_loss(extractor.judge(extractor.taps(raw)[-1]), moved)

    order = batches(len(stretches.moved), BATCH, seed)
    schedule = one_cycle(optimiser, RATE, steps)
    descend(extractor, optimiser, schedule, order, objective, steps=steps, what="adapt", progress=progress)


def adaptation_loss(logits: Tensor, moved: Tensor) -> Tensor:
    """Focal loss of both classes and Dice of the anomaly's probability: logits [n, 2] and 0 or 1 [n] to a scalar."""
    wanted = functional.one_hot(moved.long(), 2).float().clamp(SMOOTHING, 1 - SMOOTHING)
    known = functional.log_softmax(logits, 1)
    focal = -(wanted * (1 - known.exp()) ** FOCUS * known).sum(1).mean()
    odd = known[:, 1].exp()
    return focal + 1 - (2 * (odd * moved).sum() + 1) / (odd.sum() + moved.sum() + 1)


def routing_accuracy(
    routes: NDArray[np.int64], classes: NDArray[np.int64], taught: NDArray[np.int64], taught_classes: NDArray[np.int64]
) -> dict[int, float]:
    """Say which share of each class's objects goes to an entry that is its own.

    Args:
        routes: entries [n] that objects were routed to.
        classes: of these objects [n].
        taught: entries [m] of the training objects; an entry belongs to the class that most of its objects have.
        taught_classes: of these [m].

    """
    owner = {entry: np.bincount(taught_classes[taught == entry]).argmax() for entry in np.unique(taught).tolist()}
    found = np.array([owner.get(route, -1) for route in routes.tolist()])
    return {int(each): float((found[classes == each] == each).mean()) for each in np.unique(classes)}


def _tell(shares: dict[int, float]) -> None:
    level = logging.WARNING if min(shares.values()) < SURE else logging.INFO
    words = ", ".join(f"{share:.1%} of class {number}" for number, share in shares.items())
    log.log(level, "routing: %s go to an entry of their own class; the others are compared with another's", words)


def _describe(
    scan: NDArray[Any], geometry: NDArray[Any], seed: int, generator: torch.Generator, progress: Progress | None
) -> tuple[Tensor, Stretches]:
    """Cells of the good scans [n, S], and of the same scans stretched, each with a generator of its own number."""
    grid, most = (geometry.shape[2] // CELL, geometry.shape[3] // CELL), max(1, POOL // scan.shape[0])
    good: list[Tensor] = []
    raw: list[Tensor] = []
    moved: list[Tensor] = []
    for row in range(scan.shape[0]):
        own = np.array(geometry[row], np.float32)
        changed, places = stretch_geometry(np.array(scan[row], np.float32), own, np.random.default_rng([seed, row]))
        for values, into in ((own, good), (changed, raw)):
            described, known = describe_surface(torch.from_numpy(values[None]), grid)
            rows = torch.nonzero(known[0])[:, 0]
            rows = rows[torch.randperm(len(rows), generator=generator)[:most]]
            into.append(described[0, rows])
        blocks = places.reshape(grid[0], CELL, grid[1], CELL).mean((1, 3)) >= HALF
        moved.append(torch.from_numpy(blocks.ravel().astype(np.float32))[rows])
        if progress is not None:
            progress("stretch", row + 1, scan.shape[0])
    return torch.cat(good), Stretches(torch.cat(raw), torch.cat(moved))


@torch.no_grad()
def _objects(model: GLFM, good: Tensor, features: Sequence[NDArray[Any]]) -> tuple[list[Tensor], Tensor]:
    """Patches [L_i, C] of each scan and objects [n, D], once the model knows what cells [m, S] and sizes are usual."""
    size = torch.cat([object_size(maps[0]) for maps in _one_by_one(features)]).mean()
    model.middle[:-1], model.spread[:-1], model.spread[-1] = good.mean(0), good.std(0, correction=0) + 1e-6, size + 1e-6
    local, whole = [], []
    for maps in _one_by_one(features):
        patches, known, found = model.describe(maps)
        local.append(patches[0, known[0] > 0])
        whole.append(found)
    return local, torch.cat(whole)


def _one_by_one(features: Sequence[NDArray[Any]]) -> Iterator[list[Tensor]]:
    for row in range(features[0].shape[0]):
        yield [torch.from_numpy(np.array(each[row : row + 1], np.float32)) for each in features]
