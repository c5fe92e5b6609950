"""The engine of a bundle on this machine: used again where it fits, built where it does not.

An engine is made of `model.trt.onnx`, or of `model.onnx` in float32 where a bundle has no graph for TensorRT. What
TensorRT measured while it built stays in `engines/timing.cache`, so that the next build is quicker.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edge.bundle import Bundle, GraphName
from edge.durable import write_file
from edge.engine.build import Options, Tick, build
from edge.engine.flavour import TensorRT, TensorRTError, find
from edge.engine.machine import Machine, this_machine
from edge.engine.record import (
    EngineError,
    Record,
    check_fit,
    check_source,
    engine_file,
    make_record,
    read_engine,
    read_record,
    write_engine,
)

FALLBACK = "the bundle runs on the processor, by ONNX Runtime"


class Fitting(NamedTuple):
    """An engine that may be loaded on this machine, and what loads it."""

    engine: bytes
    record: Record
    tensorrt: TensorRT


class Kept(NamedTuple):
    """What became of an engine at an install."""

    record: Record | None
    words: str  # for people


def graph_for(bundle: Bundle) -> GraphName:
    return "trt" if "trt" in bundle.manifest.graphs else "float"


def check_engine(
    engines: Path, bundle: Bundle, graph: GraphName, tensorrt: TensorRT | None, machine: Machine | None
) -> tuple[bytes, Record]:
    """The engine, verified and found to fit this machine.

    Raises:
        EngineError: it must not be loaded; says why.

    """
    file = engine_file(engines, bundle, graph)
    record = read_record(file)
    check_source(file, record, bundle, graph)
    engine = read_engine(file, record)
    check_fit(file, record, tensorrt, machine)
    return engine, record


def check_here(engines: Path, bundle: Bundle, graph: GraphName) -> Fitting:
    """The engine, verified and found to fit, with the TensorRT of this machine.

    Raises:
        EngineError: it must not be loaded; says why.

    """
    flavour = read_record(engine_file(engines, bundle, graph)).flavour
    tensorrt = find(flavour) or find()
    engine, record = check_engine(engines, bundle, graph, tensorrt, this_machine())
    assert tensorrt  # it fits
    return Fitting(engine, record, tensorrt)


def build_engine(
    engines: Path,
    bundle: Bundle,
    graph: GraphName,
    tensorrt: TensorRT,
    machine: Machine | None,
    *,
    options: Options,
    tick: Tick | None = None,
) -> Record:
    """Build an engine and keep it with its record.

    Raises:
        TensorRTError: see `edge.engine.build`.
        OSError: the disk refuses.

    """
    cache = engines / "timing.cache"
    known = cache.read_bytes() if cache.exists() else b""
    graph_bytes = bundle.read(bundle.manifest.graphs[graph].file)
    built = build(graph_bytes, tensorrt, machine, options, timing_cache=known, tick=tick)
    record = make_record(bundle, graph, built, tensorrt, machine=machine, options=options)
    write_engine(engine_file(engines, bundle, graph), built.engine, record)
    if built.timing_cache and built.timing_cache != known:
        write_file(cache, built.timing_cache)
    return record


def keep_engine(engines: Path, bundle: Bundle, tick: Tick | None = None) -> Kept | None:
    """The bundle's engine for this box, built where there is none that fits; None where TensorRT or a GPU is missing.

    An engine that cannot be built keeps no bundle from being installed.

    Raises:
        OSError: the disk refuses.

    """
    if (gpu := this_machine()) is None or (trt := find()) is None:
        return None
    graph = graph_for(bundle)
    try:
        _, record = check_engine(engines, bundle, graph, trt, gpu)
        return Kept(record, f"engine of graph '{graph}' for {trt.name} on {gpu.gpu}: fits")
    except EngineError as error:
        why = str(error)
    try:
        record = build_engine(engines, bundle, graph, trt, gpu, options=Options(), tick=tick)
    except TensorRTError as error:
        return Kept(None, f"no engine: {error} So {FALLBACK}.")
    before = "" if why.endswith("beltline engine build.") else f"; before it: {why}"
    return Kept(
        record, f"engine of graph '{graph}' for {trt.name} on {gpu.gpu}: built in {record.seconds:.0f} s{before}"
    )
