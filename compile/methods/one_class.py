"""A linear one-class support vector machine (Schoelkopf et al. 2001) for a few scores at a time, as M3DM fuses them.

Its dual asks for the point nearest to the origin of all means of points in which none weighs more than 1 / (nu n). Such
a mean along a direction is that of the nu n points which lie lowest there, so Frank and Wolfe's steps find the weights
without a learning rate or a random order. M3DM's code descends by stochastic gradient; the objective is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

NU = 0.5  # share of the points that may lie below the plane; M3DM's
ROUNDS = 500


def one_class_weights(points: Tensor, nu: float = NU) -> Tensor:
    """Weights [C] of scores [n, C] of good samples; a weighted sum that is larger than theirs is odder.

    Scores are distances, at least 0, so that weights are too.
    """
    points = points.double()
    count = max(1, round(nu * len(points)))
    weights = points.mean(0)
    for turn in range(ROUNDS):
        lowest = (points @ weights).topk(count, largest=False).indices
        weights = torch.lerp(weights, points[lowest].mean(0), 2 / (turn + 2))
    return weights.float()
