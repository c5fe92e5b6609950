"""Seeded batches and one optimiser step, as the methods that are fitted by gradient share them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from compile.methods import FitError

LARGEST_GRADIENT = 1.0  # norm


def batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of rows in rising order, each pass over all `count` rows in an order of its own."""
    order = np.random.default_rng(seed)
    queue: list[int] = []
    while True:
        while len(queue) < size:
            queue += order.permutation(count).tolist()
        chosen, queue = sorted(set(queue[:size])), queue[size:]
        yield chosen


class Descent:
    """Steps of `optimiser` with clipped gradients, on a rate that rises over the first tenth and falls in a cosine."""

    def __init__(self, model: nn.Module, optimiser: torch.optim.Optimizer, rate: float, steps: int) -> None:
        self._model, self._optimiser, self._steps = model, optimiser, steps
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)

    def step(self, loss: Tensor, number: int) -> None:
        """Take step `number`.

        Raises:
            FitError: the loss is not finite.

        """
        if not torch.isfinite(loss):
            raise FitError(
                f"the fit diverged at step {number} of {self._steps}: loss {loss.item()}. Lower the learning rate."
            )
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.parameters(), LARGEST_GRADIENT)
        self._optimiser.step()
        self._schedule.step()
