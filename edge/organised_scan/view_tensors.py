"""The nine views of a prepared scan as tensors of the graph, version 1: what is seen, and where each cell is seen.

`views` uint8 [9, 224, 224] are the shaded pictures of `edge.organised_scan.views`. `view_index` int32 [9, H, W] names,
for each cell of the graph's grid, the pixel (row * 224 + column) that shows it in each view, -1 where it is hidden or
where there is no point. The way back from views to points is then a lookup.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.organised_scan.front_end import Prepared
from edge.organised_scan.views import TILTS, render


class ViewTensors(NamedTuple):
    views: NDArray[np.uint8]
    view_index: NDArray[np.int32]


def view_tensors(prepared: Prepared) -> ViewTensors:
    """Draw a prepared scan.

    Raises:
        FrameError: it has no point.

    """
    known = prepared.known > 0
    views = render(prepared.scan[known], np.ascontiguousarray(prepared.geometry[..., 1:4][known]))
    index = np.full((len(TILTS) ** 2, *known.shape), -1, np.int32)
    index[:, known] = views.pixels
    return ViewTensors(views.pictures, index)
