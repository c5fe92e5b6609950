"""The compatibility record of an engine: what it was made of, with what and for what, checked before it is loaded.

    engines/BUNDLE-ID/GRAPH.engine        the engine, as TensorRT serialised it
    engines/BUNDLE-ID/GRAPH.engine.json   its record

TensorRT says of an engine for another GPU or version only that it cannot be deserialised, if it says so at all. So all
that an engine depends on stands in the record and is compared with this machine first. What was built ahead of time for
a compute capability has neither GPU nor CUDA in its record and fits every GPU of that kind.

The hashes find damage, cut-off files and records that were edited by hand. They are no signature: who may write here
could make them fit. An engine is native code; its folder belongs to the station's user alone.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edge.bundle import Bundle, GraphName
from edge.durable import sync_folder, write_file
from edge.engine.build import Built, Options
from edge.engine.flavour import Flavour, TensorRT
from edge.engine.machine import Machine
from edge.errors import BeltlineError

OLDEST_AMPERE = (8, 0)
AGAIN = "Build it again: beltline engine build, or install the bundle again."


class EngineError(BeltlineError):
    """There is no engine, it is damaged, or it is not for this machine. The message says which, and what to do."""


class Record(BaseModel):
    """What an engine depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    schema_version: Literal[1] = 1
    bundle: str  # id
    graph: GraphName
    graph_sha256: str
    precision: str  # of the graph, for people
    layers: dict[str, dict[str, int]]  # of the parsed network: type -> data type of the output -> how many
    flavour: Flavour
    version: str  # of TensorRT
    compute_capabilities: list[str]
    machine: Machine | None  # None: built ahead of time, on no GPU
    options: Options
    engine_sha256: str
    engine_bytes: int
    built: str  # ISO 8601, UTC
    seconds: float
    sha256: str = ""  # of this record without it


def engine_file(engines: Path, bundle: Bundle, graph: GraphName) -> Path:
    return engines / bundle.id / f"{graph}.engine"


def record_file(engine: Path) -> Path:
    return engine.with_name(engine.name + ".json")


def make_record(
    bundle: Bundle, graph: GraphName, built: Built, tensorrt: TensorRT, *, machine: Machine | None, options: Options
) -> Record:
    """The record of an engine that was just built."""
    here = machine if machine and not options.compute_capabilities else None
    unsealed = Record(
        bundle=bundle.id,
        graph=graph,
        graph_sha256=bundle.graph_sha256(graph),
        precision=bundle.manifest.graphs[graph].precision,
        layers=built.layers,
        flavour=tensorrt.flavour,
        version=tensorrt.version,
        compute_capabilities=built.compute_capabilities,
        machine=here,
        options=options,
        engine_sha256=hashlib.sha256(built.engine).hexdigest(),
        engine_bytes=len(built.engine),
        built=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(built.seconds, 2),
    )
    return unsealed.model_copy(update={"sha256": _seal(unsealed)})


def write_engine(file: Path, engine: bytes, record: Record) -> None:
    """Keep an engine and its record. A power cut in between leaves two that do not fit, which is found.

    Raises:
        OSError: the disk refuses.

    """
    file.parent.mkdir(parents=True, exist_ok=True)
    sync_folder(file.parent.parent)
    write_file(file, engine)
    write_file(record_file(file), record.model_dump_json(indent=1).encode())


def read_record(file: Path) -> Record:
    """The record of an engine.

    Raises:
        EngineError: there is none, or it was edited or damaged.

    """
    place = record_file(file)
    try:
        record = Record.model_validate_json(place.read_bytes())
    except FileNotFoundError:
        raise EngineError(
            f"{place} is missing: nobody knows what {file.name} was built for. {AGAIN}"
            if file.exists()
            else f"{file}: no engine was built. Build one: beltline engine build."
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise EngineError(f"{place} is no record ({where or 'file'}: {first['msg']}). {AGAIN}") from None
    except OSError as error:
        raise EngineError(f"{place}: {error.strerror}. Use sudo -u beltline.") from None
    if record.sha256 != _seal(record):
        raise EngineError(f"{place} was edited or damaged: its own hash does not fit. {AGAIN}")
    return record


def read_engine(file: Path, record: Record) -> bytes:
    """The engine that a record describes.

    Raises:
        EngineError: it is missing, cut off or damaged.

    """
    try:
        engine = file.read_bytes()
    except OSError as error:
        raise EngineError(f"{file}: {error.strerror}, though its record is there. {AGAIN}") from None
    if len(engine) != record.engine_bytes:
        raise EngineError(f"{file} has {len(engine)} bytes, its record says {record.engine_bytes}: cut off? {AGAIN}")
    if (found := hashlib.sha256(engine).hexdigest()) != record.engine_sha256:
        raise EngineError(
            f"{file} was changed or damaged (sha256 {found[:12]}, its record says {record.engine_sha256[:12]}). {AGAIN}"
        )
    return engine


def check_source(file: Path, record: Record, bundle: Bundle, graph: GraphName) -> None:
    """Compare what an engine was built from with the bundle.

    Raises:
        EngineError: it is another bundle's, or another graph's.

    """
    if (record.graph, record.graph_sha256) != (graph, bundle.graph_sha256(graph)):
        raise EngineError(
            f"{file} was built from graph '{record.graph}' ({record.graph_sha256[:12]}), not from '{graph}' of "
            f"{bundle.path} ({bundle.graph_sha256(graph)[:12]}). {AGAIN}"
        )


def check_fit(file: Path, record: Record, tensorrt: TensorRT | None, machine: Machine | None) -> None:
    """Compare what an engine was built for with what is here.

    Raises:
        EngineError: it does not fit; names the first difference.

    """
    built_with = f"{'TensorRT' if record.flavour == 'tensorrt' else 'TensorRT-RTX'} {record.version}"
    if tensorrt is None or tensorrt.flavour != record.flavour:
        here = tensorrt.name if tensorrt else "none"
        raise EngineError(f"{file} is for {built_with}; here is {here}. {AGAIN}")
    if not _version_fits(record, tensorrt.version):
        raise EngineError(f"{file} is for {built_with}; here is {tensorrt.version}. {AGAIN}")
    if machine is None:
        raise EngineError(
            f"{file} is for a GPU of compute capability {', '.join(record.compute_capabilities)}; here is no GPU that "
            "CUDA can use. Look at the driver, or let ONNX Runtime run the bundle on the processor."
        )
    if not _capability_fits(record, machine.compute_capability):
        raise EngineError(
            f"{file} is for compute capability {', '.join(record.compute_capabilities)}; {machine.gpu} has "
            f"{machine.compute_capability}. {AGAIN}"
        )
    if record.machine is None:
        return
    for what, then, now in (
        ("GPU", record.machine.gpu if record.options.hardware == "exact" else machine.gpu, machine.gpu),
        ("CUDA", record.machine.cuda, machine.cuda),
        ("L4T", record.machine.l4t, machine.l4t),
    ):
        if then != now:
            raise EngineError(f"{file} was built with {what} {then}; here is {now}. {AGAIN}")


def _seal(record: Record) -> str:
    return hashlib.sha256(record.model_copy(update={"sha256": ""}).model_dump_json().encode()).hexdigest()


def _version_fits(record: Record, version: str) -> bool:
    """The same, or a later one of the same major version where the engine was built so."""
    if not record.options.version_compatible:
        return version == record.version
    then, now = ([int(part) for part in text.split(".")] for text in (record.version, version))
    return now[0] == then[0] and now >= then


def _capability_fits(record: Record, compute_capability: str) -> bool:
    if record.options.hardware == "ampere-plus":
        major, minor = map(int, compute_capability.split("."))
        return (major, minor) >= OLDEST_AMPERE
    return compute_capability in record.compute_capabilities
