"""Round the weights of a convolution to whole steps so that its outputs change least, not its weights.

Rounding each weight to the nearest step ignores that inputs move together: what one weight adds wrongly, its neighbours
can take back. With M the second moments of the inputs and d the rounding error of one output channel, the mean square
change of that output is d M d'. `round_weights` rounds the weights in turn, those with the largest input first, and
spreads each error over the weights that are still to come (optimal brain surgeon; GPTQ, Frantar et al. 2022).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array64 = NDArray[np.float64]


def round_weights(weights: Array64, moments: Array64, scales: Array64, limit: int) -> Array64:
    """Round weights to steps; per output channel never worse than the nearest steps in `output_error`.

    Args:
        weights: [groups, rows, n]; a row is one output channel.
        moments: [groups, n, n], positive definite.
        scales: [groups, rows], the size of a step.
        limit: largest magnitude, steps.

    Returns:
        [groups, rows, n], whole numbers.

    """
    nearest = _nearest(weights, scales[..., None], limit)
    spread = _feed_errors_on(weights, moments, scales, limit)
    better = output_error(weights, moments, scales, spread) < output_error(weights, moments, scales, nearest)
    return np.where(better[..., None], spread, nearest)


def output_error(weights: Array64, moments: Array64, scales: Array64, steps: Array64) -> Array64:
    """Mean square change of each output, [groups, rows]."""
    wrong = steps * scales[..., None] - weights
    return np.asarray(((wrong @ moments) * wrong).sum(axis=-1))


def _feed_errors_on(weights: Array64, moments: Array64, scales: Array64, limit: int) -> Array64:
    order = np.argsort(-np.diagonal(moments, axis1=1, axis2=2), axis=1)
    sorted_moments = np.take_along_axis(np.take_along_axis(moments, order[:, :, None], 1), order[:, None, :], 2)
    rest = np.take_along_axis(weights, order[:, None, :], 2)
    # Row j holds what remains of the inverse when inputs before j are fixed, divided by the root of its diagonal.
    factor = np.linalg.cholesky(np.linalg.inv(sorted_moments)).transpose(0, 2, 1)
    steps = np.empty_like(rest)
    for j in range(rest.shape[2]):
        steps[:, :, j] = _nearest(rest[:, :, j], scales, limit)
        wrong = (rest[:, :, j] - steps[:, :, j] * scales) / factor[:, None, j, j]
        rest[:, :, j + 1 :] -= wrong[..., None] * factor[:, None, j, j + 1 :]
    return np.take_along_axis(steps, np.argsort(order, axis=1)[:, None, :], 2)


def _nearest(weights: Array64, scales: Array64, limit: int) -> Array64:
    return np.asarray(np.clip(np.rint(weights / scales), -limit, limit))
