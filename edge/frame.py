"""Pictures, scans and scores: the arrays that travel through the station."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.worst import Worst
from firmware_bridge.parts import PartId


@dataclass(frozen=True, slots=True)
class Frame:
    """The picture or the scan of one part, or both.

    `image` is uint8 or uint16, HxWx3 RGB or HxW grey, as the camera gave it (RGB order, never BGR). `scan` is float32
    HxWx3, an organised cloud in millimetres, NaN where there is no return.
    `captured_ns` is the start of the exposure on the box's monotonic clock.
    """

    part_id: PartId
    captured_ns: int
    image: NDArray[np.uint8] | NDArray[np.uint16] | None
    name: str = ""  # file name or device, for people
    scan: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """What the graph said of one frame."""

    value: float
    map: NDArray[np.float32]  # [h, w]
    graph: str  # sha256 of the graph file
    input_crc32: int  # of the tensors that were scored: proves later which picture it was
    times_ms: dict[str, float] = field(default_factory=dict)  # step -> duration
    worst: Worst | None = None  # of a scan
