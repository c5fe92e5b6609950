"""What the box's front end makes of each scan of a set, on disk: maps that methods take beside the trunk's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compile.backbones.choice import LITE_CELL
from compile.features import Tick, on_disk
from compile.listing import Skipped
from compile.scan_data import Scans
from edge.bundle import Background, ScanInput, ScanSource, ScanTensor
from edge.front_end import FrameError
from edge.organised_scan.front_end import organised_scan
from edge.prepare import as_tensor
from edge.scans.read import read_points
from edge.scans.unit import in_millimetres

ScanMap = ScanTensor
FPFH_NEIGHBOURS = 100  # BTF's


class ScanMaps(NamedTuple):
    """`maps` are float32 [n, C, h, w] of the files `kept` (their places in what was asked for)."""

    maps: dict[ScanMap, NDArray[np.float32]]
    kept: list[int]
    skipped: list[Skipped]


def scan_input(source: ScanSource, size: int, background: Background, wanted: Sequence[ScanMap]) -> ScanInput:
    """Bring scans to a size, and their FPFH, where it is wanted, to the grid of the trunk's finest map."""
    return ScanInput(
        height=size,
        width=size,
        background=background,
        fpfh_cells=size // LITE_CELL if "fpfh" in wanted else 0,
        fpfh_neighbours=FPFH_NEIGHBOURS,
        source=source,
    )


def load_scan_maps(
    paths: Sequence[Path], scans: Scans, spec: ScanInput, wanted: Sequence[ScanMap], work: Path, *, tick: Tick | None
) -> ScanMaps:
    """Prepare the scans that belong to these files.

    Args:
        paths: as the data set lists them.
        scans: of the data set.
        spec: of the front end.
        wanted: which maps.
        work: scratch folder that exists.
        tick: told what is done.

    """
    maps: dict[ScanMap, NDArray[np.float32]] = {}
    kept: list[int] = []
    skipped = []
    for place, path in enumerate(paths):
        try:
            found = organised_scan(in_millimetres(read_points(scans.of[path]), scans.unit), spec)
        except FrameError as error:
            skipped.append(Skipped(path, f"scan: {error}"))
            continue
        for name in wanted:
            values = as_tensor(found, name)
            if name not in maps:
                maps[name] = on_disk(work / f"{name}.bin", np.dtype(np.float32), (len(paths), *values.shape))
            maps[name][len(kept)] = values
        kept.append(place)
        if tick:
            tick(place + 1, len(paths))
    return ScanMaps({name: array[: len(kept)] for name, array in maps.items()}, kept, skipped)
