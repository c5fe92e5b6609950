"""What a compilation found out: the material of parity.json, of the report and of `--json`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from calibration.threshold import ThresholdResult
from compile.data import DataSet
from compile.image_size import SizeChoice
from compile.parity import Reduced
from compile.precision import Rendering
from edge.bundle import GraphName

Said = TypeVar("Said")


class Interval(NamedTuple):
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class TestRow:
    """What one graph makes of the labelled test pictures; they influence neither fit nor threshold."""

    graph: str  # "torch", "float", "int8", "trt"
    image_auroc: Interval | None
    pixel_auroc: Interval | None
    aupro: Interval | None
    good_rejected: int
    good: int
    defective_accepted: int
    defective: int


class Found(NamedTuple):
    """How many of the defects known here score above a graph's threshold."""

    found: int
    of: int


@dataclass(frozen=True, slots=True)
class Example:
    """What is shown of a part, with its map, for people."""

    title: str
    images: list[NDArray[np.uint8]]  # [H, W, 3]: its picture, its height, or both
    map: NDArray[np.float32]  # [h, w]
    score: float


@dataclass(slots=True)
class Evidence:
    """Of one class of a bundle, filled while the compilation goes on.

    Classes of one bundle share `renderings` and `warnings`; what is about the whole is kept with the first of them.
    """

    name: str
    version: str
    seed: int
    data: DataSet
    size: SizeChoice
    method: str = ""  # its title
    class_name: str = ""  # where the bundle is for several
    split: str = ""  # for people
    fit_steps: int = 0  # that the shipped head took
    promise: str = ""  # the threshold's, for people
    thresholds: dict[GraphName, ThresholdResult] = field(default_factory=dict)
    good_scores: dict[GraphName, NDArray[np.float64]] = field(default_factory=dict)  # of parts not trained on
    good_names: list[str] = field(default_factory=list)  # of the same pictures, in the same order
    good_groups: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # their physical parts
    other_scores: dict[GraphName, NDArray[np.float64]] = field(default_factory=dict)  # defective or painted
    other_name: str = ""
    renderings: dict[GraphName, Rendering] = field(default_factory=dict)
    float_parity: dict[str, float | int] = field(default_factory=dict)
    reduced: dict[GraphName, Reduced] = field(default_factory=dict)
    test: list[TestRow] = field(default_factory=list)
    graph_ms: dict[GraphName, float] = field(default_factory=dict)  # median, one thread, this machine
    examples: list[Example] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # step -> duration
    machine: str = ""

    @property
    def label(self) -> str:
        """What a sentence about this class begins with."""
        return f"Class {self.class_name}: " if self.class_name else ""

    def warn(self, text: str) -> None:
        self.warnings.append(self.label + text)

    def defects_found(self) -> dict[GraphName, Found]:
        """By each graph of the bundle at its own threshold."""
        return {
            name: Found(int(np.sum(scores > self.thresholds[name].value)), len(scores))
            for name, scores in self.other_scores.items()
            if name == "float" or self.reduced[name].kept
        }

    def defects_json(self) -> dict[str, object]:
        graphs = {name: {"found": each.found, "of": each.of} for name, each in self.defects_found().items()}
        return {"what": self.other_name, "graphs": graphs}

    def parity_json(self) -> dict[str, object]:
        return {
            "float": self.float_parity,
            "reduced": {name: _reduced(found, self.renderings[name]) for name, found in self.reduced.items()},
            "test": [_row(row) for row in self.test],
            "defects": self.defects_json(),
            "engine": "not run",
            "trt_scored_by": "ONNX Runtime, Q/DQ in float as written",
        }

    def calibration_json(self) -> dict[str, object]:
        """The ranges that each INT8 rendering took from the good pictures."""
        return {
            name: {
                "pictures": found.pictures,
                "method": found.method,
                "ranges": {tensor: [float(f"{end:.7g}") for end in ends] for tensor, ends in found.ranges.items()},
            }
            for name, found in self.renderings.items()
            if found.ranges
        }


def per_class(classes: Sequence[Evidence], say: Callable[[Evidence], Said]) -> Said | dict[str, Said]:
    """What there is to say, by class where there are several."""
    if len(classes) == 1:
        return say(classes[0])
    return {found.class_name: say(found) for found in classes}


def _reduced(found: Reduced, rendering: Rendering) -> dict[str, object]:
    return {
        "kept": found.kept,
        "reason": found.reason,
        "evidence": found.evidence,
        "image_auroc_float": found.auroc_float,
        "image_auroc_reduced": found.auroc_reduced,
        "image_auroc_loss": found.auroc_loss,
        "image_auroc_loss_interval": list(found.auroc_loss_interval),
        "spearman": found.spearman,
        "false_reject_shift": found.false_reject_shift,
        "precision": rendering.precision,
        "ranges": rendering.method,
        "maps_change_relative": rendering.change,
        "maps_change_naive": rendering.naive_change,
        "float_nodes": [
            {"node": node.node, "operator": node.operator, "change_alone": node.harm} for node in rendering.float_nodes
        ],
        "trials": [
            {"recipe": trial.recipe, "maps_change": trial.change, "verdict": trial.verdict}
            for trial in rendering.trials
        ],
    }


def _row(row: TestRow) -> dict[str, object]:
    figures = {
        name: None if found is None else {"value": found.value, "interval": [found.low, found.high]}
        for name, found in (("image_auroc", row.image_auroc), ("pixel_auroc", row.pixel_auroc), ("aupro", row.aupro))
    }
    return {
        "graph": row.graph,
        **figures,
        "good": row.good,
        "good_rejected": row.good_rejected,
        "defective": row.defective,
        "defective_accepted": row.defective_accepted,
    }
