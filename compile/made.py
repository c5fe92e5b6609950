"""What a compilation has made for all of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from compile.anomaly_graph import AnomalyGraph
from compile.job import Graphs
from compile.model import Heads
from compile.parts import Parts
from edge.view import View


@dataclass(frozen=True, slots=True)
class Good:
    """The good parts of all classes, one class after the other."""

    parts: Parts  # on disk
    views: list[View]
    classes: NDArray[np.int64]  # [n]
    groups: NDArray[np.int64]  # [n], the physical part of each, numbered over all classes

    @property
    def paths(self) -> list[Path]:
        """What names each."""
        return [view.file for view in self.views]


@dataclass(frozen=True, slots=True)
class Made:
    """What was made for all classes."""

    good: Good
    trunks: Graphs
    heads: Heads
    head: onnx.ModelProto  # the shipped one, exported
    trained: AnomalyGraph
    graphs: Graphs
