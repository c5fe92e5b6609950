"""What the graph is given of views belongs to the cells of its grid."""

import numpy as np
import pytest

from edge.front_end import FrameError
from edge.organised_scan.front_end import Prepared
from edge.organised_scan.view_tensors import view_tensors
from edge.organised_scan.views import SIDE, render


def prepared(cells: int = 40) -> Prepared:
    """A wave with a hole and a step that hides some of it."""
    y, x = np.mgrid[:cells, :cells].astype(np.float32) - cells / 2
    scan = np.stack([x, y, np.sin(x / 5) + 30 * (x > 4)], 2).astype(np.float32)
    known = np.ones((cells, cells), np.float32)
    known[3:6, 30:] = 0
    geometry = np.zeros((cells, cells, 7), np.float32)
    geometry[..., 3] = -1
    none = np.zeros((0, 0, 33), np.float32)
    return Prepared(scan * known[..., None], known, geometry * known[..., None], none, np.zeros(3, np.float32), 0.1)


def test_each_cell_finds_its_pixel() -> None:
    given = prepared()
    found = view_tensors(given)
    known = given.known > 0
    drawn = render(given.scan[known], np.ascontiguousarray(given.geometry[..., 1:4][known]))
    assert (found.views.shape, found.views.dtype) == ((9, SIDE, SIDE), np.uint8)
    assert (found.view_index.shape, found.view_index.dtype) == ((9, 40, 40), np.int32)
    assert (found.view_index[:, ~known] == -1).all()
    np.testing.assert_array_equal(found.view_index[:, known], drawn.pixels)
    row, column = divmod(found.view_index[0, 20], SIDE)
    assert (np.diff(column[:20]) > 0).all(), "the first view looks from the sensor: columns go right"
    assert np.ptp(row[:20]) <= 2
    assert (found.view_index[:, known] == -1).any(), "the step hides something"


def test_nothing_cannot_be_drawn() -> None:
    given = prepared()
    given.known[:] = 0
    with pytest.raises(FrameError, match="0 points to draw"):
        view_tensors(given)
