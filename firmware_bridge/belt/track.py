"""The belt as the encoder and the eye see it: counts, and edges of parts."""

from __future__ import annotations

import math

from firmware_bridge.belt.config import BeltConfig, EncoderDropout, EyeBounce


class Track:
    """Pure geometry: belt travel (mm) to encoder counts and back, and the eye's edges in order of travel."""

    def __init__(self, config: BeltConfig, n_parts: int) -> None:
        self._config = config
        self._n_parts = n_parts
        self._dropouts = sorted(
            (fault.at_mm, fault.length_mm) for fault in config.faults if isinstance(fault, EncoderDropout)
        )
        self.edges = self._eye_edges()

    def lead_mm(self, part: int) -> float:
        """Travel at which the leading edge of a part reaches the eye."""
        return self._config.first_part_mm + part * self._config.pitch_mm

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
        part = math.floor((travel_mm + half - self._config.first_part_mm) / self._config.pitch_mm)
        if 0 <= part < self._n_parts and abs(travel_mm - self.lead_mm(part)) <= half:
            return part
        return None

    def _eye_edges(self) -> list[tuple[float, bool]]:
        edges = []
        for part in range(self._n_parts):
            lead = self.lead_mm(part)
            edges += [(lead, True), (lead + self._config.part_length_mm, False)]
        for fault in self._config.faults:
            if isinstance(fault, EyeBounce):
                lead = self.lead_mm(fault.part)
                edges += [(lead + i * fault.spacing_mm, i % 2 == 0) for i in range(1, 2 * fault.bounces + 1)]
        return sorted(edges)
