"""Look at every scan of a set once: what it spans, how far away it lies, and whether it can be used at all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.split import thumbnail
from compile.listing import Skipped
from compile.scan_files import Sample
from edge.bundle import ScanSource
from edge.front_end import FrameError
from edge.scans.read import read_points
from edge.scans.unit import Unit, choose_unit, measure_extent, scale_to_mm


class Look(NamedTuple):
    """What one scan looks like; lengths in millimetres."""

    shape: tuple[int, int]
    extent_mm: float
    distance_mm: float
    thumbnail: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scans:
    """`of` gives the scan of each picture of a set (or of itself, where there are no pictures), `looks` what it looks
    like, by the same file.
    """

    of: dict[Path, Path]
    looks: dict[Path, Look]
    unit: Unit
    pictured: bool

    def source(self, good: Sequence[Path]) -> ScanSource:
        """Describe the scans that belong to these files."""
        looks = [self.looks[path] for path in good]
        height, width = zip(*(look.shape for look in looks), strict=True)
        distances = [look.distance_mm for look in looks]
        return ScanSource(
            height=(min(height), max(height)),
            width=(min(width), max(width)),
            unit=self.unit,
            distance_mm=(min(distances), max(distances)),
        )


def look_at_scans(
    samples: Sequence[Sample], unit: Unit | None, tick: Callable[[], None]
) -> tuple[Scans, list[Skipped], str]:
    """Read the scans of a set.

    Args:
        samples: of training and test.
        unit: of their files; None to tell it from what they span.
        tick: told after each scan.

    Returns:
        the usable ones; the others; and what was decided about the unit, for people.

    """
    looks, skipped = {}, []
    for sample in samples:
        try:
            looks[sample] = _look(sample)
        except FrameError as error:
            skipped.append(Skipped(sample.shown, f"scan: {error}"))
        tick()
    middle = statistics.median(look.extent_mm for look in looks.values()) if looks else 0.0
    decided = unit or choose_unit([middle])
    usable = {}
    for sample, look in looks.items():
        try:
            scale = scale_to_mm(look.extent_mm, decided)
        except FrameError as error:  # noqa: PERF203 - a scan took milliseconds to read
            skipped.append(Skipped(sample.shown, f"scan: {error}"))
        else:
            usable[sample] = look._replace(extent_mm=look.extent_mm * scale, distance_mm=look.distance_mm * scale)
    scans = Scans(
        {sample.shown: sample.scan for sample in usable},
        {sample.shown: look for sample, look in usable.items()},
        decided,
        any(sample.picture for sample in samples),
    )
    why = "as --unit says" if unit else "decided on"
    return scans, skipped, f"The unit of the scans is {decided}, {why}; the middle one spans {middle:.4g} {decided}."


def _look(sample: Sample) -> Look:
    """Look at a scan; its lengths are in the file's unit still."""
    points = read_points(sample.scan)
    z = points[..., 2]
    known = ~np.isnan(z)
    low, high = np.quantile(z[known], (0.01, 0.99))
    grey = np.where(known, np.clip((z - low) / max(high - low, 1e-9), 0, 1) * 65535, 0).astype(np.uint16)
    height, width = z.shape
    return Look((height, width), measure_extent(points), float(np.median(z[known])), thumbnail(grey))
