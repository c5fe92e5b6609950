"""A part's picture and scan become the inputs of the graphs: one function, in the workshop and on the box.

What the front ends `rgb` and `organised_scan` make is put together here, and checked against what the bundle declares.
`mask` is 1 where the map counts: everywhere for pictures; where half of a pixel has points that count for scans, so
that holes, and the belt where it was taken away, neither score nor hide what lies beside them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.bundle import ScanInput, ScanTensor, Spec
from edge.front_end import FrameError, rgb
from edge.organised_scan.fpfh import WIDTH
from edge.organised_scan.front_end import GEOMETRY, Prepared, organised_scan
from edge.picture import Picture

Tensors = Mapping[str, NDArray[Any]]  # inputs of the graphs by name, without the batch


class Ready(NamedTuple):
    """`tensors` of one part, `mask` among them; and its `scan`, where there is one, for pictures and millimetres."""

    tensors: dict[str, NDArray[Any]]
    scan: Prepared | None


def prepare(image: Picture | None, scan: NDArray[np.float32] | None, spec: Spec) -> Ready:
    """Turn what was seen of a part into the graphs' inputs. What the graphs do not look at is not looked at.

    Args:
        image: HxWx3 RGB or HxW grey, uint8 or uint16.
        scan: float32 [H, W, 3], mm, NaN where there is no return.
        spec: of the bundle.

    Returns:
        `image` uint8 [H, W, 3], the declared tensors, float32 (`scan` [H, W, 3], others [C, h, w]), and `mask` float32
        [h, w] of the map.

    Raises:
        FrameError: one of them is missing, or not what the bundle was made from.

    """
    tensors: dict[str, NDArray[Any]] = {}
    found = None
    mask = np.ones(spec.map_size, np.float32)
    try:
        if spec.image:
            if image is None:
                raise FrameError("a scan without its picture, and the bundle looks at both")
            tensors["image"] = rgb(image, spec.image)
        if spec.scan:
            if scan is None:
                raise FrameError("a picture without a scan, and the bundle looks at scans")
            if spec.image and image is not None and image.shape[:2] != scan.shape[:2]:
                raise FrameError(
                    f"a picture of {image.shape[1]}x{image.shape[0]} pixels beside a scan of "
                    f"{scan.shape[1]}x{scan.shape[0]} points; they must be aligned, place by place"
                )
            found = organised_scan(scan, spec.scan)
            tensors |= {tensor.name: as_tensor(found, tensor.name) for tensor in spec.tensors}
            share = cv2.resize(found.known, spec.map_size[::-1], interpolation=cv2.INTER_AREA)
            mask = (share >= 0.5).astype(np.float32)
    except cv2.error as error:
        raise FrameError(f"the front end failed: {error.err}") from error
    return Ready(tensors | {"mask": mask}, found)


def as_tensor(found: Prepared, name: ScanTensor) -> NDArray[np.float32]:
    """What the front end made, as graphs take it: channels first, but for `scan` itself."""
    values: NDArray[np.float32] = getattr(found, name)
    return values if name == "scan" else np.moveaxis(values, 2, 0)


def tensor_shape(name: ScanTensor, spec: ScanInput) -> tuple[int, ...]:
    """What `as_tensor` gives, for this front end."""
    if name == "fpfh":
        return WIDTH, spec.fpfh_cells, spec.fpfh_cells
    return (GEOMETRY, spec.height, spec.width) if name == "geometry" else (spec.height, spec.width, 3)


def digest(tensors: Tensors, spec: Spec) -> int:
    """CRC-32 of what was scored: proves later which part's picture and scan it was."""
    crc = 0
    for name in (*(["image"] if spec.image else []), *(tensor.name for tensor in spec.tensors)):
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).data, crc)
    return crc
