"""What the box's front end makes of each scan of a set, on disk: maps that methods take beside the trunk's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from numpy.typing import NDArray

from compile.backbones.choice import LITE_CELL
from compile.features import Tick, on_disk
from compile.listing import Skipped
from compile.scan_data import Scans
from edge.bundle import Background, ScanInput, ScanSource, ScanTensor
from edge.front_end import FrameError
from edge.organised_scan.front_end import Prepared, organised_scan
from edge.organised_scan.view_tensors import view_tensors
from edge.prepare import as_tensor
from edge.scans.read import read_points
from edge.scans.unit import in_millimetres

ViewTensor = Literal["views", "view_index"]
VIEW_TENSORS: tuple[ViewTensor, ...] = ("views", "view_index")
ScanMap = ScanTensor | ViewTensor
FPFH_NEIGHBOURS = 100  # BTF's


class ScanMaps(NamedTuple):
    """`maps` are [n, ...] of the files `kept` (their places in what was asked for)."""

    maps: dict[ScanMap, NDArray[Any]]
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
    maps: dict[ScanMap, NDArray[Any]] = {}
    kept: list[int] = []
    skipped = []
    for place, path in enumerate(paths):
        try:
            found = _tensors(organised_scan(in_millimetres(read_points(scans.of[path]), scans.unit), spec), wanted)
        except FrameError as error:
            skipped.append(Skipped(path, f"scan: {error}"))
            continue
        for name, values in found.items():
            if name not in maps:
                maps[name] = on_disk(work / f"{name}.bin", values.dtype, (len(paths), *values.shape))
            maps[name][len(kept)] = values
        kept.append(place)
        if tick:
            tick(place + 1, len(paths))
    return ScanMaps({name: array[: len(kept)] for name, array in maps.items()}, kept, skipped)


def _tensors(prepared: Prepared, wanted: Sequence[ScanMap]) -> dict[ScanMap, NDArray[Any]]:
    drawn = view_tensors(prepared) if set(wanted) & set(VIEW_TENSORS) else None
    return {
        name: getattr(drawn, name) if name in VIEW_TENSORS else as_tensor(prepared, cast("ScanTensor", name))
        for name in wanted
    }
