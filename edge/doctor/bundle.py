"""Whether a bundle may run on this box, how fast, and which of its graphs would."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

from edge.bundle import Bundle, GraphName
from edge.doctor.finding import Finding
from edge.engine.flavour import find
from edge.engine.keep import FALLBACK, check_here, graph_for
from edge.engine.machine import this_machine
from edge.engine.record import EngineError, engine_file, record_file
from edge.engine_scorer import open_engine
from edge.errors import BundleError
from edge.scorer import Scorer, ScorerError, preferred
from edge.settings import BundleChoice
from edge.signature import accepted
from edge.speed import Measured, Speed, choose

MEASURE_NS, MEASURE_AT_LEAST = 1_500_000_000, 50


def signature(bundle: Bundle, choice: BundleChoice) -> Finding:
    """Whether this box accepts the bundle."""
    try:
        words = accepted(bundle, choice.keys, allow_unsigned=choice.allow_unsigned)
    except BundleError as error:
        return Finding("bundle", "signature", str(error), "missing")
    return Finding("bundle", "signature", words, "note" if words == "unsigned" else "ok")


def engine(engines: Path, bundle: Bundle, speed: Speed | None) -> Finding | None:
    """Whether the engine of an installed bundle fits, was measured, gives its golden answers here, and how fast.

    None where there is none and there can be none.
    """
    name = graph_for(bundle)
    file = engine_file(engines, bundle, name)
    if not (file.exists() or record_file(file).exists() or (this_machine() and find())):
        return None
    try:
        record = check_here(engines, bundle, name).record
        measured = speed.engine.sha256 if speed and speed.engine else ""
        with closing(open_engine(engines, bundle, sha256=measured)) as scorer:
            words = _speed(_measure(scorer))
    except EngineError as error:
        return Finding("bundle", "engine", f"{error} Until then {FALLBACK}.", "note")
    except ScorerError as error:
        return Finding("bundle", "engine", f"fits, and is not used: {error} Until then {FALLBACK}.", "note")
    which = f"{record.engine_sha256[:12]} of graph '{name}', {record.precision}, built {record.built}"
    return Finding("bundle", "engine", f"{which}: fits, self-test passed, {words}")


def graphs(
    bundle: Bundle,
    wanted: GraphName | Literal["auto"] = "auto",
    threads: int = 1,
    *,
    speed: Speed | None = None,
    engine_runs: bool = False,
) -> Iterator[Finding]:
    """Self-test and measure each graph on this box, and say which one the station would run.

    Args:
        bundle: one that is accepted.
        wanted: what the station file asks for.
        threads: of the processor.
        speed: what was measured at the install, for an installed bundle.
        engine_runs: its engine gives its golden answers here.

    """
    manifest = bundle.manifest
    yield Finding("bundle", "name", f"{manifest.name} {manifest.version}, {manifest.method}, id {bundle.id[:12]}")
    if len(manifest.classes) > 1:
        yield Finding("bundle", "classes", f"{', '.join(manifest.classes)}; each graph is tested with all of them")
    has_engine = bool(speed and speed.engine and speed.engine.chosen)
    if speed:
        measured: list[tuple[str, Measured]] = list(speed.graphs.items())
        measured += [("engine", speed.engine)] if speed.engine else []
        then = ", ".join(f"{name} p50 {each.p50_ms:.2f} ms" for name, each in measured if each.p50_ms)
        words = f"{speed.measured}: {then}; chosen: {'engine, else ' if has_engine else ''}{speed.graph}"
        where = "" if speed.holds else f"; not here: {speed.processor}, ONNX Runtime {speed.onnxruntime}. Install again"
        yield Finding("bundle", "speed at install", words + where, "note" if where else "ok")
    medians: dict[GraphName, float] = {}
    for name, graph in manifest.graphs.items():
        if graph.runtime != "onnxruntime":
            yield Finding("bundle", f"graph {name}", f"{graph.precision}, for TensorRT: see engine", "note")
            continue
        try:
            times_ms = _measure(Scorer(bundle, name, threads))
        except ScorerError as error:
            yield Finding("bundle", f"graph {name}", str(error), "missing" if name == "float" else "note")
            continue
        medians[name] = times_ms[len(times_ms) // 2]
        on = f"on {threads} thread{'s' if threads > 1 else ''}"
        yield Finding("bundle", f"graph {name}", f"{graph.precision}: self-test passed, {_speed(times_ms)} {on}")
    if wanted in medians:
        yield Finding("bundle", "would run", f"graph {wanted}, as the station file asks")
    elif wanted != "auto":
        yield Finding("bundle", "would run", f"none: graph '{wanted}' cannot be trusted on this box", "missing")
    elif speed and speed.holds and speed.graph in medians:
        words = f"graph {speed.graph}, as chosen at the install"
        if has_engine:
            words = f"the engine, else {words}" if engine_runs else f"{words} for where the engine does not run"
        yield Finding("bundle", "would run", words, "note" if has_engine and not engine_runs else "ok")
    elif medians:
        name = preferred(medians)[0]
        fastest = choose({name: Measured(p50_ms=ms) for name, ms in medians.items()})
        hint = f'; {fastest} is faster here: set graph = "{fastest}" in [bundle]' if fastest != name else ""
        yield Finding("bundle", "would run", f"graph {name}{hint}", "note" if hint else "ok")
    else:
        yield Finding("bundle", "would run", "none: no graph can be trusted on this box", "missing")


def chosen_class(bundle: Bundle, name: str | None) -> Iterator[Finding]:
    """Whether a station's class is one of the bundle's."""
    try:
        bundle.class_index(name)
    except BundleError as error:
        yield Finding("bundle", "class", str(error), "missing")
        return
    if name is not None:
        yield Finding("bundle", "class", f"{name}, as the station file asks")


def _speed(times_ms: list[float]) -> str:
    p50, p99 = (times_ms[len(times_ms) * per_cent // 100] for per_cent in (50, 99))
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {times_ms[-1]:.2f} ms in {len(times_ms)} runs"


def _measure(scorer: Scorer) -> list[float]:
    """Times of the graph on golden inputs, milliseconds, from the shortest to the longest."""
    times_ms: list[float] = []
    start_ns = time.perf_counter_ns()
    while len(times_ms) < MEASURE_AT_LEAST or time.perf_counter_ns() - start_ns < MEASURE_NS:
        before_ns = time.perf_counter_ns()
        scorer.self_test()
        times_ms.append((time.perf_counter_ns() - before_ns) / 1e6)
    return sorted(times_ms)
