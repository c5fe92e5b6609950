"""GLFM's memory: global entries that say what an object is, and a local bank of patches for each of them.

The paper's (arXiv 2505.07375): the entries are the centres of k-means over objects' descriptors; its public code takes
a greedy k-centre choice of K training objects in their place. Each training object's patches go to the bank of its
nearest entry, each bank is reduced to a tenth greedily, and a patch is compared with the bank of its object's entry
alone, so that a defect of one class cannot hide behind what is usual in another.

Ours: each bank counts distances in deviations of its own patches, for among all classes the directions in which these
differ would weigh little; banks of one length, shorter ones repeating their vectors, so that a graph can gather one; at
most `BANK` vectors; and an entry that attracts no object is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from compile.job import Progress
from compile.methods.cells import measure_directions
from compile.methods.patchcore import greedy_coreset

REDUCED = 10  # one vector in so many is kept
BANK, POOL = 3000, 30_000  # vectors of a bank kept, and looked at
STARTS, ROUNDS = 10, 50  # of k-means
Choice = Literal["k-means", "k-centre"]


class Banks(nn.Module):
    """Entries [K, D] and a bank of each.

    Args:
        entries: descriptors of objects.
        whiten: for each entry a map of its patches, of C numbers, to as many in their own deviations.
        vectors: of whitened patches [K, m, C].

    """

    entries: Tensor
    weights: Tensor
    biases: Tensor
    vectors: Tensor
    squares: Tensor

    def __init__(self, entries: Tensor, whiten: Sequence[nn.Linear], vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("entries", entries)
        self.register_buffer("weights", torch.stack([each.weight.detach().T for each in whiten]))
        self.register_buffer("biases", torch.stack([each.bias.detach() for each in whiten]))
        self.register_buffer("vectors", vectors)
        self.register_buffer("squares", vectors.square().sum(2), persistent=False)

    def route(self, whole: Tensor) -> Tensor:
        """Nearest entry int64 [B] of objects [B, D]."""
        return (whole[:, None] - self.entries).square().sum(2).argmin(1)

    def forward(self, local: Tensor, route: Tensor) -> Tensor:
        """Distance [B, L] of patches [B, L, C] to the nearest vector of the bank that each object is routed to."""
        count, width = self.vectors.shape[1:]
        own = local @ self.weights.index_select(0, route) + self.biases.index_select(0, route)[:, None]
        bank, squares = self.vectors.index_select(0, route), self.squares.index_select(0, route)
        likely = (-2 * own @ bank.transpose(1, 2) + squares[:, None]).argmin(2)
        chosen = (route[:, None] * count + likely).flatten()
        near = self.vectors.reshape(-1, width).index_select(0, chosen).reshape(own.shape)
        found: Tensor = torch.linalg.vector_norm(own - near, dim=2)  # of differences: squares lose digits near 0
        return found


def choose_entries(whole: Tensor, count: int, choice: Choice, generator: torch.Generator) -> Tensor:
    """Choose K entries [min(K, n), D] among descriptors of objects [n, D]."""
    if choice == "k-means":
        return k_means(whole, min(count, len(whole)), generator)
    shuffled = whole[torch.randperm(len(whole), generator=generator)]
    return shuffled[greedy_coreset(shuffled, count, generator)]


def k_means(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centres [count, D] of points [n, D], the best of several starts by the squared distances to them."""
    found = [_descend(points, _spread_start(points, count, generator)) for _ in range(STARTS)]
    return min(found, key=lambda centres: float(torch.cdist(points, centres).amin(1).square().sum()))


def _spread_start(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points drawn one after the other, each by its squared distance to those before (k-means++)."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    while len(chosen) < count:
        apart = torch.cdist(points, points[chosen]).amin(1).square()
        chosen.append(int(torch.multinomial(apart + 1e-12, 1, generator=generator)))
    return points[chosen].clone()


def _descend(points: Tensor, centres: Tensor) -> Tensor:
    for _ in range(ROUNDS):
        own = torch.nn.functional.one_hot(torch.cdist(points, centres).argmin(1), len(centres)).to(points.dtype)
        counts = own.sum(0)[:, None]
        centres = torch.where(counts > 0, own.T @ points / counts.clamp(min=1), centres)
    return centres


def fill_banks(
    entries: Tensor,
    whole: Tensor,
    local: Sequence[Tensor],
    generator: torch.Generator,
    progress: Progress | None = None,
) -> Banks:
    """Give each entry the patches of the objects that are nearest to it.

    Args:
        entries: [K, D].
        whole: [n, D] of the training objects.
        local: their patches [L_i, C].
        generator: of the choice of vectors.
        progress: called with (what, done, of).

    """
    route = (whole[:, None] - entries).square().sum(2).argmin(1)
    kept, maps, banks = [], [], []
    for number in range(len(entries)):
        own = [local[row] for row in torch.nonzero(route == number)[:, 0].tolist()]
        if own:
            pool = torch.cat(own)
            count = max(1, min(BANK, len(pool) // REDUCED))
            pool = pool[torch.randperm(len(pool), generator=generator)[:POOL]]
            whiten = nn.Linear(pool.shape[1], pool.shape[1])
            measure_directions(whiten, pool)
            pool = whiten(pool)
            banks.append(pool[greedy_coreset(pool, count, generator)])
            maps.append(whiten)
            kept.append(number)
        if progress is not None:
            progress("fill banks", number + 1, len(entries))
    longest = max(map(len, banks))
    return Banks(entries[kept], maps, torch.stack([bank[torch.arange(longest) % len(bank)] for bank in banks]))
