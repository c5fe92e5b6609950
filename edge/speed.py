"""How fast each graph of a bundle is on this box: measured once, at the install, and kept beside the bundle.

Accuracy decides what a bundle contains, speed which of its graphs a box runs. Each graph has a threshold of its own,
so the choice must not change from start to start: it is made here, once, and written down, with the processor and the
ONNX Runtime that it holds for. A reduced graph is taken unless another is more than a tenth faster. The rounds
alternate between the graphs, so that a neighbour's burst of work hits all of them.
"""

from __future__ import annotations

import logging
import platform
import re
import time
from datetime import datetime, timezone
from pathlib import Path

import onnxruntime
from pydantic import BaseModel, ConfigDict, ValidationError

from edge.bundle import Bundle, GraphName
from edge.durable import sync_folder, write_file
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


class Speed(BaseModel):
    """The graphs of one bundle on this box, and which of them it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    graph: GraphName
    graphs: dict[GraphName, Measured]
    threads: int
    processor: str
    onnxruntime: str
    measured: str  # ISO 8601, UTC

    @property
    def holds(self) -> bool:
        """Whether it was measured with this processor and this ONNX Runtime."""
        return (self.processor, self.onnxruntime) == (processor(), onnxruntime.__version__)


def measure(bundle: Bundle, threads: int) -> Speed:
    """Self-test every graph with all golden inputs, measure those that pass, and choose.

    Raises:
        ScorerError: no graph can be trusted on this box.

    """
    scorers: dict[GraphName, Scorer] = {}
    found: dict[GraphName, Measured] = {}
    for name, graph in bundle.manifest.graphs.items():
        if graph.runtime != "onnxruntime":
            found[name] = Measured(problem=f"for {graph.runtime}, which this beltline does not run")
            continue
        try:
            scorers[name] = Scorer(bundle, name, threads)
        except ScorerError as error:
            found[name] = Measured(problem=str(error))
    if not scorers:
        raise ScorerError(
            f"{bundle.path}: no graph can be trusted on this box. " + " ".join(each.problem for each in found.values())
        )
    times_ms: dict[GraphName, list[float]] = {name: [] for name in scorers}
    start_ns = time.perf_counter_ns()
    while len(min(times_ms.values(), key=len)) < MEASURE_AT_LEAST or time.perf_counter_ns() - start_ns < MEASURE_NS:
        for name, scorer in scorers.items():
            before_ns = time.perf_counter_ns()
            scorer.self_test()
            times_ms[name].append((time.perf_counter_ns() - before_ns) / 1e6)
    for name, times in times_ms.items():
        ranked = sorted(times)
        p99 = ranked[min(len(ranked) - 1, len(ranked) * 99 // 100)]
        found[name] = Measured(p50_ms=ranked[len(ranked) // 2], p99_ms=p99, runs=len(ranked))
    return Speed(
        graph=choose(found),
        graphs=found,
        threads=threads,
        processor=processor(),
        onnxruntime=onnxruntime.__version__,
        measured=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


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


def chosen_at_install(engines: Path, identity: str) -> GraphName | None:
    """The graph that was chosen for this box; None where none was, or on another processor or ONNX Runtime."""
    speed = read_speed(engines, identity)
    if speed and not speed.holds:
        log.warning(
            "the graph was chosen on %s with ONNX Runtime %s: install the bundle again to measure here",
            speed.processor,
            speed.onnxruntime,
        )
        return None
    return speed.graph if speed else None


def processor() -> str:
    """The processor's name, as the system tells it."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return processor_name(text) or platform.machine()


def processor_name(cpuinfo: str) -> str | None:
    found = re.search(r"^(?:model name|Model|Hardware)\s*: (.+)$", cpuinfo, re.MULTILINE)
    return found[1] if found else None
