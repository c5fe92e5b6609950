"""What one compilation is about: the user's wishes and what every step of it shares."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from compile.backbones.choice import DEFAULT, Backbone
from compile.evidence import Evidence
from edge.bundle import Background, GraphName, Spec
from edge.scans.unit import Unit

Progress = Callable[[str, int, int], None]  # (step, done, of)
Graphs = dict[GraphName, onnx.ModelProto]

FILES: dict[GraphName, str] = {"float": "model.onnx", "int8": "model.int8.onnx", "trt": "model.trt.onnx"}
LEAST_FIT_STEPS = 20
WORK = ".work"  # what a working folder's name ends with


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked for."""

    data: Path
    output: Path
    size: int | None = None
    smallest_defect_px: float | None = None
    budget_ms: float | None = None
    target_false_reject: float | None = None  # `default_target` of the parts
    tail_model: bool = False  # where the parts do not support the target
    seed: int = 0
    group_by: str = "near-duplicates"
    name: str = ""
    version: str = "1"
    method: str = "varad"
    fit_steps: int | None = None  # the method's own
    backbone: str = DEFAULT.name
    learn_defects: int = 0  # labelled ones of each class, which leave the test set
    unit: Unit | None = None  # of scans; None: from what they span
    background: Background = "none"  # of scans
    more: tuple[Path, ...] = ()  # folders of further classes of the same bundle

    @property
    def folders(self) -> list[Path]:
        """One per class."""
        return [self.data, *self.more]


@dataclass(slots=True)
class Clock:
    """Tells the progress of each step and keeps its duration."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.progress(name, 0, 1)
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started
        self.progress(name, 1, 1)

    def ticks(self, name: str) -> Callable[[int, int], None]:
        return lambda done, of: self.progress(name, done, of)


@dataclass(frozen=True, slots=True)
class Job:
    """One compilation, or one class of it, once its data are read and its image size is chosen."""

    settings: Settings
    clock: Clock
    work: Path  # scratch folder
    spec: Spec
    evidence: Evidence
    class_index: int | None = None  # what the graph is told, where it takes the class
    backbone: Backbone = DEFAULT
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    @property
    def side(self) -> int:
        """Of the graph's square input, pixels or points."""
        seen = self.spec.image or self.spec.scan
        assert seen is not None
        return seen.height

    @property
    def map_side(self) -> int:
        return self.spec.map_size[0]
