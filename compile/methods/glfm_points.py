"""GLFM on Point-MAE, all of it in torch: adapt the encoder, fill the banks, score a cloud's points (arXiv 2505.07375).

The paper's, by its public code as read: one stretched cloud a step; the last block's tokens come to the points by the
three nearest centres, where a linear head tells moved ones from others, and all weights learn; then the first two
blocks alone describe patches, their mean an object; a point has the distances of its three nearest patches. Ours: the
stretching, the rate's cycle and the whitening of each bank (`glfm_banks`). Points are in the encoder's unit.

It needs farthest points and neighbours of unorganised clouds, so it is no graph: `GLFM` is what ships.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from compile.job import Progress
from compile.methods.descent import batches, descend, device, one_cycle
from compile.methods.glfm_banks import Banks, Choice, choose_entries, fill_banks
from compile.methods.glfm_fit import adaptation_loss
from compile.methods.point_mae import GROUPS, NEIGHBOURS, PointEncoder, describe_patches, to_points
from compile.methods.stretching import stretch
from edge.organised_scan.groups import Field, farthest_points, group

RATE = 1e-4  # the paper's
STEPS = 10_000  # 100 passes of 100 clouds


class PointGLFM(NamedTuple):
    """An adapted encoder, its banks, and the groups [G] of so many neighbours that clouds are described by."""

    encoder: PointEncoder
    banks: Banks
    groups: int
    neighbours: int


def adapt_encoder(
    encoder: PointEncoder,
    clouds: Sequence[Field],
    normals: Sequence[Field],
    *,
    seed: int,
    steps: int = STEPS,
    groups: int = GROUPS,
    neighbours: int = NEIGHBOURS,
    progress: Progress | None = None,
) -> None:
    """Teach an encoder to tell the moved points of stretched clouds.

    Args:
        encoder: all of it learns.
        clouds: of good parts, [n_i, 3] each.
        normals: of their points, [n_i, 3] of length 1.
        seed: fixes the result, on one thread to the bit.
        steps: of the optimiser, a cloud each.
        groups: of a cloud.
        neighbours: of a group.
        progress: called with (what, done, of).

    Raises:
        FitError: the fit diverged.

    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        depth = len(encoder.blocks.blocks)
        model = nn.ModuleDict(
            {"encoder": encoder.requires_grad_(), "judge": nn.Linear(encoder.norm.normalized_shape[0], 2)}
        )

        def objective(drawn: tuple[int, int]) -> Tensor:
            row, step = drawn
            found = stretch(clouds[row], normals[row], np.random.default_rng([seed, step]))
            parts = group(found.points, groups, neighbours)
            shapes, centres = (torch.from_numpy(each)[None].to(device()) for each in parts[:2])
            tokens = to_points(encoder(shapes, centres, (depth,))[0], found.points, parts.centres)
            return adaptation_loss(model["judge"](tokens), torch.from_numpy(found.moved).float().to(device()))

        optimiser = torch.optim.Adam(model.parameters(), RATE)
        schedule = one_cycle(optimiser, RATE, steps)
        order = _numbered(batches(len(clouds), 1, seed))
        descend(model.train(), optimiser, schedule, order, objective, steps=steps, what="adapt", progress=progress)
    encoder.eval().requires_grad_(requires_grad=False)


def _numbered(order: Iterator[list[int]]) -> Iterator[tuple[int, int]]:
    """Each cloud with its step, which says how it is stretched: the same in a fit that goes on."""
    for step, rows in enumerate(order):
        yield rows[0], step


@torch.no_grad()
def fill_point_banks(
    encoder: PointEncoder,
    clouds: Sequence[Field],
    *,
    entries: int,
    seed: int,
    choice: Choice = "k-means",
    groups: int = GROUPS,
    neighbours: int = NEIGHBOURS,
) -> PointGLFM:
    """Describe good clouds [n_i, 3] and keep their patches by kind of object.

    Args:
        encoder: in eval mode.
        clouds: of good parts.
        entries: K.
        seed: of the choices.
        choice: of the entries.
        groups: of a cloud.
        neighbours: of a group.

    """
    local = [describe_patches(encoder, each, groups=groups, neighbours=neighbours) for each in clouds]
    whole, generator = torch.stack([each.mean(0) for each in local]), torch.Generator().manual_seed(seed)
    chosen = choose_entries(whole, entries, choice, generator)
    return PointGLFM(encoder, fill_banks(chosen, whole, local, generator), groups, neighbours)


@torch.no_grad()
def score_points(model: PointGLFM, points: Field) -> tuple[Tensor, int]:
    """Distances float32 [n] of a cloud's points [n, 3] from what is usual, and the entry that it was routed to."""
    local = describe_patches(model.encoder, points, groups=model.groups, neighbours=model.neighbours)[None]
    route = model.banks.route(local.mean(1))
    centres = points[farthest_points(points, model.groups)]
    return to_points(model.banks(local, route)[0, :, None], points, centres)[:, 0], int(route)
