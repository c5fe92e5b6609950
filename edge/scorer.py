"""One graph of a bundle on its runtime: a part's picture, scan, or both in, a score and its map out.

The self-test scores the bundle's golden inputs and compares them with what the bundle says this graph answered when it
was proven. A box that cannot repeat that answer must not inspect. Engines are held to the same answers, within the same
tolerances, as the graph that they were built from.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle, Golden, GraphName, Input
from edge.errors import BeltlineError
from edge.frame import Score
from edge.front_end import FrameError
from edge.organised_scan.example import example_scan
from edge.picture import Picture, decode
from edge.prepare import Tensors, digest, prepare, tensor_shape
from edge.scoring.onnx_runtime import OnnxRuntime
from edge.scoring.runtime import Contract, GraphError, Runtime
from edge.worst import find_worst

log = logging.getLogger(__name__)

WARM_UP_RUNS, MEASURED_RUNS = 3, 9
STEP_RUNS = 50


class ScorerError(BeltlineError):
    """The graph cannot be loaded, does not keep the contract, failed, or does not repeat its golden answers."""


class BadScoreError(ScorerError):
    """The graph answered with a number that is not finite."""


class Scorer:
    """Scores frames with one graph of a bundle. Used from one thread; close it where it has an engine."""

    def __init__(
        self,
        bundle: Bundle,
        graph: GraphName,
        threads: int = 1,
        class_index: int = 0,
        open_runtime: Callable[[Contract], Runtime] | None = None,
    ) -> None:
        """Load, warm up and self-test, with the golden inputs of every class.

        Args:
            bundle: it is held.
            graph: which rendering of the model.
            threads: of the processor, for one frame.
            class_index: of the parts to come, see `Bundle.class_index`.
            open_runtime: loads what runs the graph; ONNX Runtime where None.

        Raises:
            ScorerError: the graph cannot run here, or does not give its golden answers.

        """
        self.bundle, self.graph, self.class_index = bundle, graph, class_index
        self.threshold = bundle.thresholds[class_index][graph].value
        self.spec = bundle.spec(class_index)
        self._hash = bundle.graph_sha256(graph)
        contract = self._contract()
        self._shapes = {name: buffer.shape[1:] for name, buffer in contract.inputs.items()}
        self.runtime = self._open(contract, threads, open_runtime)
        try:
            self._golden = [
                (sample, self._golden_input(sample), self._golden_class(sample), bundle.array(sample.maps[graph]))
                for sample in bundle.golden.samples
                if graph in sample.scores
            ]
            if not self._golden:
                raise ScorerError(f"{bundle.path}: no golden sample for graph '{graph}'. Compile the bundle again.")
            self._next_golden = 0
            for _ in range(WARM_UP_RUNS):
                self.score_tensors(self._golden[0][1])
            for _ in self._golden:
                self.self_test()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back what the runtime holds; a second time does nothing."""
        self.runtime.close()

    def score(self, image: Picture | None, scan: NDArray[np.float32] | None = None) -> Score:
        """Score what was seen of a part.

        Args:
            image: HxWx3 RGB or HxW grey, uint8 or uint16, as the `source` of the bundle, or of this class, describes.
            scan: float32 [H, W, 3], mm, NaN where there is no return.

        Raises:
            FrameError: it is not what this bundle can judge.
            BadScoreError: the answer is not finite.
            ScorerError: the graph failed.

        """
        start_ns = time.perf_counter_ns()
        ready = prepare(image, scan, self.spec)
        front_end_ms = (time.perf_counter_ns() - start_ns) / 1e6
        score = self.score_tensors(ready.tensors)
        score.times_ms["front_end"] = front_end_ms
        return replace(score, worst=find_worst(score.map, ready.scan)) if ready.scan else score

    def score_tensors(self, tensors: Tensors) -> Score:
        """Score what `edge.prepare` made; the whole map counts where it has no `mask`."""
        return self._run(tensors, self.class_index)

    def _run(self, tensors: Tensors, class_index: int) -> Score:
        start_ns = time.perf_counter_ns()
        try:
            scores, maps = self.runtime.run({"mask": 1.0, "class": class_index, **tensors})
        except GraphError as error:
            raise ScorerError(f"graph '{self.graph}': {error}") from error
        value = float(scores[0])
        if not math.isfinite(value) or not np.isfinite(maps).all():
            raise BadScoreError(f"graph '{self.graph}' gave a score or map that is not finite (score {value})")
        times_ms = {"graph": (time.perf_counter_ns() - start_ns) / 1e6}
        return Score(value, maps[0].copy(), self._hash, digest(tensors, self.spec), times_ms)

    def self_test(self) -> None:
        """Score the next golden sample, which also keeps the processor's caches warm.

        Raises:
            ScorerError: the answer lies outside the bundle's tolerance.

        """
        sample, tensors, class_index, expected_map = self._golden[self._next_golden]
        self._next_golden = (self._next_golden + 1) % len(self._golden)
        score = self._run(tensors, class_index)
        expected, allowed = sample.scores[self.graph], sample.score_tolerance[self.graph]
        if abs(score.value - expected) > allowed:
            self._refuse(f"scores {sample.name} {score.value:.6g}, the bundle says {expected:.6g} within {allowed:.2g}")
        difference, allowed = float(np.abs(score.map - expected_map).max()), sample.map_tolerance[self.graph]
        if difference > allowed:
            self._refuse(f"draws a map of {sample.name} that differs by {difference:.3g}, allowed {allowed:.2g}")

    def doubt(self, threshold: float) -> str | None:
        """Why somebody's own threshold looks like a slip of the pen: it turns over every golden verdict of a kind."""
        golden = [
            sample.scores[self.graph] for sample, _, its_class, _ in self._golden if its_class == self.class_index
        ]
        bad, good = [v for v in golden if v > self.threshold], [v for v in golden if v <= self.threshold]
        if bad and threshold >= max(bad):
            return "it accepts every golden defect. Correct [bundle] threshold."
        if good and threshold < min(good):
            return "it rejects every good golden part. Correct [bundle] threshold."
        return None

    def _refuse(self, found: str) -> NoReturn:
        again = "build the engine again (beltline engine build), and install the bundle again"
        advice = again if self.runtime.engine else "choose another graph in [bundle]"
        raise ScorerError(f"self-test: graph '{self.graph}' {found}. This box computes otherwise: {advice}.")

    def _open(self, contract: Contract, threads: int, open_runtime: Callable[[Contract], Runtime] | None) -> Runtime:
        file = self.bundle.manifest.graphs[self.graph].file
        try:
            return open_runtime(contract) if open_runtime else OnnxRuntime(self.bundle.read(file), contract, threads)
        except GraphError as error:
            raise ScorerError(f"{self.bundle.path}: {file}: {error}") from error

    def _contract(self) -> Contract:
        image, scan, tensors, map_size = self.spec
        inputs: dict[str, NDArray[Any]] = {"mask": np.ones((1, *map_size), np.float32)}
        if image:
            inputs["image"] = np.zeros((1, image.height, image.width, 3), np.uint8)
        for tensor in tensors:
            assert scan is not None  # by the manifest
            if tuple(tensor.shape) != (made := tensor_shape(tensor.name, scan)):
                raise ScorerError(
                    f"{self.bundle.path}: tensor '{tensor.name}' is declared as {tensor.shape}, the front end makes "
                    f"{list(made)}. Compile the bundle again."
                )
            inputs[tensor.name] = np.zeros((1, *made), np.float32)
        if self.bundle.manifest.class_input:
            inputs["class"] = np.zeros(1, np.int64)
        return Contract(inputs, {"score": np.zeros(1, np.float32), "map": np.zeros((1, *map_size), np.float32)})

    def _golden_class(self, sample: Golden) -> int:
        return self.bundle.class_index(sample.class_name or None)

    def _golden_input(self, sample: Golden) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {
            name: self.bundle.array(file, self._shapes[name]) for name, file in sample.tensors.items()
        }
        if sample.image:
            try:
                picture = decode(self.bundle.read(sample.image))
            except (FrameError, KeyError) as error:
                raise ScorerError(f"{self.bundle.path}: golden input {sample.image}: {error}") from error
            if picture.shape != self._shapes["image"] or picture.dtype != np.uint8:
                raise ScorerError(f"{self.bundle.path}: golden input {sample.image} has shape {picture.shape}")
            found["image"] = picture
        return found


def choose_scorer(
    bundle: Bundle,
    wanted: GraphName | Literal["auto"],
    threads: int = 1,
    class_index: int = 0,
    first: GraphName | None = None,
) -> Scorer:
    """The scorer for a graph; for "auto" a reduced graph, and float where none gives its golden answers here.

    Nothing is measured for the choice: each graph has a threshold of its own, which must not change with a restart.
    `beltline install` measures, and its choice is tried `first`.

    Raises:
        ScorerError: the graph is not in the bundle, or cannot be trusted on this box.

    """
    offered = [name for name, graph in bundle.manifest.graphs.items() if graph.runtime == "onnxruntime"]
    if wanted != "auto":
        if wanted in offered:
            return Scorer(bundle, wanted, threads, class_index)
        raise ScorerError(
            f"{bundle.path} has no graph '{wanted}' for ONNX Runtime; there are: {', '.join(offered)}. "
            'Set graph = "auto" in [bundle].'
        )
    problems: list[str] = []
    for name in sorted(preferred(offered), key=lambda name: name != first):
        try:
            return Scorer(bundle, name, threads, class_index)
        except ScorerError as error:  # noqa: PERF203 - two turns
            log.warning("graph '%s' is not used: %s", name, error)
            problems.append(str(error))
    raise ScorerError(f"{bundle.path}: no graph can be used on this box: {' '.join(problems)}")


def preferred(graphs: Iterable[GraphName]) -> list[GraphName]:
    """Reduced graphs first: the order in which "auto" tries them."""
    return sorted(graphs, key=lambda name: name == "float")


def measure_ms(scorer: Scorer) -> float:
    """Median time of the graph on golden inputs, milliseconds."""
    times_ms = []
    for _ in range(MEASURED_RUNS):
        start_ns = time.perf_counter_ns()
        scorer.self_test()
        times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    return statistics.median(times_ms)


def slow_step_ms(scorer: Scorer) -> float:
    """The third slowest of 50 whole scores of the largest frame that the bundle takes, milliseconds.

    About the p95: one or two hiccups of a box that has just started are no property of the recipe.
    """
    image, scan = scorer.spec.image, scorer.spec.scan
    given = _example_picture(image) if image else None, example_scan(scan) if scan else None
    times_ms = []
    for _ in range(STEP_RUNS):
        start_ns = time.perf_counter_ns()
        scorer.score(*given)
        times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    return sorted(times_ms)[-3]


def _example_picture(spec: Input) -> Picture:
    source = spec.source
    frame = np.zeros((source.height[1], source.width[1], 3), np.uint8 if source.white == 255 else np.uint16)
    frame[: source.height[1] // 2] = source.white  # a blank frame is refused
    return frame if source.channels == 3 else frame[:, :, 0]
