"""The belt as the encoder and the eye see it: counts, and edges of parts."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from firmware_bridge.belt.config import BeltConfig, EncoderDropout, EyeBounce, TruePart


class Track:
    """Pure geometry: belt travel (mm) to encoder counts and back, and the eye's edges in order of travel."""

    def __init__(self, config: BeltConfig, parts: Sequence[TruePart]) -> None:
        self._config = config
        gaps = accumulate(part.gap_mm for part in parts)
        self._leads_mm = [config.first_part_mm + i * config.pitch_mm + gap for i, gap in enumerate(gaps)]
        self._dropouts = sorted(
            (fault.at_mm, fault.length_mm) for fault in config.faults if isinstance(fault, EncoderDropout)
        )
        self.edges = self._eye_edges()

    def lead_mm(self, part: int) -> float:
        """Travel at which the leading edge of a part reaches the eye."""
        return self._leads_mm[part]

    def count(self, travel_mm: float) -> int:
        """What the encoder has counted at this travel."""
        missed = sum(min(max(0.0, travel_mm - at), length) for at, length in self._dropouts)
        return math.floor((travel_mm - missed) * self._config.counts_per_mm + 1e-9)

    def travel_mm(self, count: float) -> float:
        """Travel at which the encoder reaches a count."""
        travel = count / self._config.counts_per_mm
        for at, length in self._dropouts:
            if travel > at:
                travel += length
        return travel

    def under_camera(self, travel_mm: float) -> int | None:
        """The part whose body covers the camera, half a part length ahead of the eye."""
        half = self._config.part_length_mm / 2
        part = bisect_right(self._leads_mm, travel_mm + half) - 1
        return part if part >= 0 and abs(travel_mm - self._leads_mm[part]) <= half else None

    def _eye_edges(self) -> list[tuple[float, bool]]:
        edges = []
        for lead in self._leads_mm:
            edges += [(lead, True), (lead + self._config.part_length_mm, False)]
        for fault in self._config.faults:
            if isinstance(fault, EyeBounce):
                lead = self.lead_mm(fault.part)
                edges += [(lead + i * fault.spacing_mm, i % 2 == 0) for i in range(1, 2 * fault.bounces + 1)]
        return sorted(edges)
