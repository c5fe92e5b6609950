"""Score pictures whose trunk maps are cached, on the GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compile.anomaly_graph import AnomalyHead
from compile.methods.descent import computing, device
from compile.parity import Scored

BATCH = 4


def score_maps(
    head: AnomalyHead,
    maps: Sequence[NDArray[Any]],
    tick: Callable[[int, int], None] | None = None,
    class_index: int = 0,
) -> Scored:
    """Score n pictures, given as one array [n, ...] per input of the head but the mask, all of their area inspected.

    A head that takes the class is told that all are of `class_index`.
    """
    count = maps[0].shape[0]
    scores = np.empty(count)
    heat = np.empty((count, *head.map_size), np.float32)
    with computing(head):
        for start in range(0, count, BATCH):
            chosen = slice(start, min(start + BATCH, count))
            chunk = [torch.from_numpy(np.array(each[chosen])).to(device()) for each in maps]
            classes = [torch.full((len(chunk[0]),), class_index).to(device())] if head.takes_class else []
            score, found = head(*chunk, torch.ones(len(chunk[0]), *head.map_size).to(device()), *classes)
            scores[chosen], heat[chosen] = score.cpu().numpy(), found.cpu().numpy()
            if tick:
                tick(chosen.stop, count)
    return Scored(scores, heat)
