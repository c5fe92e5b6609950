"""How fast each graph of a bundle is on this box: measured once, at the install, and kept beside the bundle.

Accuracy decides what a bundle contains, speed which of its graphs a box runs. Each graph has a threshold of its own,
so the choice must not change from start to start: it is made here, once, and written down, with the processor and the
ONNX Runtime that it holds for. A reduced graph is taken unless another is more than a tenth faster; and the engine on
the GPU, where there is one, only if it is more than a tenth faster than that. It is one engine, known by its hash: what
is built later was not measured. The rounds alternate between the graphs, so that a neighbour's burst of work hits all
of them.
"""

from __future__ import annotations

import logging
import platform
import re
import time
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import onnxruntime
from pydantic import BaseModel, ConfigDict, ValidationError

from edge.bundle import Bundle, GraphName
from edge.durable import sync_folder, write_file
from edge.engine.record import EngineError
from edge.engine_scorer import open_engine
from edge.scorer import Scorer, ScorerError, preferred

log = logging.getLogger(__name__)

WORTH_IT = 1.1  # times as fast as the graph that is otherwise preferred
MEASURE_NS, MEASURE_AT_LEAST = 3_000_000_000, 30


class Measured(BaseModel):
    """One graph on this box."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    p50_ms: float | None = None
    p99_ms: float | None = None
    runs: int = 0
    problem: str = ""  # why it cannot run here


class MeasuredEngine(Measured):
    """The engine on this box's GPU."""

    sha256: str = ""  # which one; none where it has a problem
    chosen: bool = False  # it runs, and what ONNX Runtime would run is the fallback


class Speed(BaseModel):
    """The graphs of one bundle on this box, and which of them it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    graph: GraphName  # that ONNX Runtime runs
    graphs: dict[GraphName, Measured]  # by ONNX Runtime
    engine: MeasuredEngine | None = None
    threads: int
    processor: str
    onnxruntime: str
    measured: str  # ISO 8601, UTC

    @property
    def holds(self) -> bool:
        """Whether it was measured with this processor and this ONNX Runtime."""
        return (self.processor, self.onnxruntime) == (processor(), onnxruntime.__version__)

    @property
    def elsewhere(self) -> str:
        """What to do where it does not hold."""
        return (
            f"measured and chosen on {self.processor} with ONNX Runtime {self.onnxruntime}: install the bundle again "
            "to measure here"
        )


def measure(bundle: Bundle, threads: int, engines: Path | None = None) -> Speed:
    """Self-test every graph with all golden inputs, measure those that pass, and choose.

    Args:
        bundle: the bundle.
        threads: of the processor.
        engines: where the bundle's engine is kept; None where there is none.

    Raises:
        ScorerError: no graph can be trusted on this box.

    """
    scorers: dict[GraphName, Scorer] = {}
    found: dict[GraphName, Measured] = {}
    for name, graph in bundle.manifest.graphs.items():
        if graph.runtime != "onnxruntime":
            found[name] = Measured(problem="for TensorRT, as an engine, where there is a GPU")
            continue
        try:
            scorers[name] = Scorer(bundle, name, threads)
        except ScorerError as error:
            found[name] = Measured(problem=str(error))
    if not scorers:
        raise ScorerError(
            f"{bundle.path}: no graph can be trusted on this box. " + " ".join(each.problem for each in found.values())
        )
    timed, engine = _time_all(list(scorers.values()), bundle, engines)
    found.update(zip(scorers, timed, strict=True))
    usual = choose(found)
    if engine:
        engine = engine.model_copy(update={"chosen": is_worth_it(engine, found[usual])})
    return Speed(
        graph=usual,
        graphs=found,
        engine=engine,
        threads=threads,
        processor=processor(),
        onnxruntime=onnxruntime.__version__,
        measured=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _time_all(
    scorers: list[Scorer], bundle: Bundle, engines: Path | None
) -> tuple[list[Measured], MeasuredEngine | None]:
    """The graphs, and the bundle's engine beside them; one that fails keeps no bundle from being installed."""
    if engines is None:
        return _time(scorers), None
    try:
        with closing(open_engine(engines, bundle)) as on_gpu:
            *timed, last = _time([*scorers, on_gpu])
            return timed, MeasuredEngine(**last.model_dump(), sha256=on_gpu.runtime.engine)
    except (EngineError, ScorerError) as error:
        return _time(scorers), MeasuredEngine(problem=str(error))


def _time(scorers: list[Scorer]) -> list[Measured]:
    times_ms: list[list[float]] = [[] for _ in scorers]
    start_ns = time.perf_counter_ns()
    while len(times_ms[-1]) < MEASURE_AT_LEAST or time.perf_counter_ns() - start_ns < MEASURE_NS:
        for scorer, times in zip(scorers, times_ms, strict=True):
            before_ns = time.perf_counter_ns()
            scorer.self_test()
            times.append((time.perf_counter_ns() - before_ns) / 1e6)
    found = []
    for times in times_ms:
        ranked = sorted(times)
        p99 = ranked[min(len(ranked) - 1, len(ranked) * 99 // 100)]
        found.append(Measured(p50_ms=ranked[len(ranked) // 2], p99_ms=p99, runs=len(ranked)))
    return found


def is_worth_it(engine: Measured, graph: Measured) -> bool:
    """Whether an engine runs, and enough faster than what ONNX Runtime would run."""
    return bool(engine.p50_ms and graph.p50_ms and graph.p50_ms > WORTH_IT * engine.p50_ms)


def choose(graphs: dict[GraphName, Measured]) -> GraphName:
    """The preferred graph that runs here, or the fastest where that is worth it."""
    medians = {name: each.p50_ms for name, each in graphs.items() if each.p50_ms is not None}
    usual, fastest = preferred(medians)[0], min(medians, key=lambda name: medians[name])
    return fastest if medians[usual] > WORTH_IT * medians[fastest] else usual


def write_speed(engines: Path, identity: str, speed: Speed) -> None:
    """Keep it beside the bundle. Raises OSError when the disk refuses."""
    folder = engines / identity
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(engines)
    write_file(folder / "speed.json", speed.model_dump_json(indent=1).encode())


def read_speed(engines: Path, identity: str) -> Speed | None:
    """What was measured at the install; None where nothing is there, or nothing readable."""
    file = engines / identity / "speed.json"
    try:
        return Speed.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("%s: not used: %s", file, str(error).partition("\n")[0])
        return None


def processor() -> str:
    """The processor's name, as the system tells it."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return processor_name(text) or platform.machine()


def processor_name(cpuinfo: str) -> str | None:
    found = re.search(r"^(?:model name|Model|Hardware)\s*: (.+)$", cpuinfo, re.MULTILINE)
    return found[1] if found else None
