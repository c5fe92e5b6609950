"""`beltline engine build`, `inspect` and `check`: what TensorRT makes of a bundle, on a host or on the box."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from edge.bundle import Bundle, GraphName, read_bundle
from edge.console import building, console
from edge.engine.build import Options, parsed_layers
from edge.engine.flavour import NoTensorRTError, TensorRT, require
from edge.engine.keep import build_engine, check_here, graph_for
from edge.engine.machine import Machine, this_machine
from edge.engine.record import EngineError, Record, engine_file, read_engine, read_record
from edge.errors import BundleError

ENGINES = Path("/var/lib/beltline/engines")
BundleFile = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle that the engine is made of.")]
Engines = Annotated[Path, typer.Option("--engines", help="Folder of engines; each bundle has one of its own in it.")]
Graph = Annotated[
    Literal["trt", "float"] | None,
    typer.Option("--graph", help="Which graph; by default trt, or float where the bundle has no other for TensorRT."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

engine = typer.Typer(help="Build an engine for TensorRT, look into it, and check whether it fits this machine.")


@engine.command()
def build(
    bundle: BundleFile,
    *,
    engines: Engines = ENGINES,
    graph: Graph = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(help="Build for GPUs of this kind (8.6), with TensorRT-RTX, also without a GPU; may be repeated."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 1,
    workspace_mib: Annotated[int, typer.Option(min=1, help="Largest scratch memory on the GPU.")] = 1024,
    hardware: Annotated[
        Literal["exact", "same-capability", "ampere-plus"],
        typer.Option(help="TensorRT: which other GPUs may run it, slower; not on a Jetson."),
    ] = "exact",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="TensorRT: later releases may run it, slower.")
    ] = False,
    dla_core: Annotated[
        int | None, typer.Option(min=0, help="TensorRT: build for this DLA core, if it takes every layer.")
    ] = None,
    json: Json = False,
) -> None:
    """Build an engine and its compatibility record; exit code 3 when TensorRT is not installed."""
    machine = this_machine()
    opened, name = _open(bundle, graph)
    options = Options(
        compute_capabilities=compute_capability or [],
        batches=(1, batch, batch) if batch > 1 else (1, 1, 1),
        workspace_mib=workspace_mib,
        hardware=hardware,
        version_compatible=version_compatible,
        dla_core=dla_core,
    )
    tensorrt = require("tensorrt-rtx") if compute_capability else _tensorrt(machine)
    with building() as tick:
        record = build_engine(engines, opened, name, tensorrt, machine, options=options, tick=tick)
    _show(engine_file(engines, opened, name), record, json=json)


@engine.command()
def inspect(bundle: BundleFile, engines: Engines = ENGINES, graph: Graph = None, json: Json = False) -> None:
    """Show the layers that TensorRT makes of a graph before it fuses them, and the record of its engine."""
    opened, name = _open(bundle, graph)
    record, problem = _recorded(engines, opened, name)
    try:
        tensorrt = _tensorrt(this_machine())
        layers, parser = parsed_layers(opened.read(opened.manifest.graphs[name].file), tensorrt), tensorrt.name
    except NoTensorRTError:
        if record is None:
            raise
        layers, parser = record.layers, "the record"
    if json:
        told = {"bundle": opened.id, "graph": name, "layers": layers, "parser": parser, "problem": problem}
        console().out(json_format.dumps(told | {"record": record.model_dump(mode="json") if record else None}))
        return
    total = sum(sum(types.values()) for types in layers.values())
    console().print(f"graph {name}: {total} layers, by {parser}", markup=False)
    table = Table("layer", "data type of its output", box=None)
    for kind, types in sorted(layers.items(), key=lambda row: -sum(row[1].values())):
        table.add_row(kind, ", ".join(f"{count} {dtype}" for dtype, count in types.items()))
    console().print(table)
    if record:
        _show(engine_file(engines, opened, name), record, json=False)
    else:
        console().print(problem, markup=False)


@engine.command()
def check(bundle: BundleFile, engines: Engines = ENGINES, graph: Graph = None, json: Json = False) -> None:
    """Verify an engine and its record, and that it fits this machine; exit code 1 when it must not be loaded here."""
    opened, name = _open(bundle, graph)
    _show(engine_file(engines, opened, name), check_here(engines, opened, name).record, json=json, verdict=": fits")


def _open(path: Path, graph: GraphName | None) -> tuple[Bundle, GraphName]:
    bundle = read_bundle(path)
    name = graph or graph_for(bundle)
    if name not in bundle.manifest.graphs:
        raise BundleError(f"{path} has no graph '{name}'; there are: {', '.join(bundle.manifest.graphs)}.")
    return bundle, name


def _tensorrt(machine: Machine | None) -> TensorRT:
    """TensorRT does not even start without a GPU."""
    return require() if machine else require("tensorrt-rtx", "tensorrt")


def _recorded(engines: Path, bundle: Bundle, graph: GraphName) -> tuple[Record | None, str]:
    file = engine_file(engines, bundle, graph)
    try:
        record = read_record(file)
        read_engine(file, record)
    except EngineError as error:
        return None, str(error)
    return record, ""


def _show(file: Path, record: Record, *, json: bool, verdict: str = "") -> None:
    if json:
        console().out(json_format.dumps({"engine": str(file), "record": record.model_dump(mode="json")}))
        return
    where = record.machine.gpu if record.machine else "any GPU"
    options = record.options.model_dump(mode="json", exclude_defaults=True, exclude={"compute_capabilities"})
    console().print(
        f"{file}{verdict}\n"
        f"  graph {record.graph}, {record.precision}, {record.engine_bytes / 1e6:.1f} MB\n"
        f"  for {record.flavour} {record.version}, {where} of compute capability "
        f"{', '.join(record.compute_capabilities)}\n"
        f"  built {record.built} in {record.seconds:.1f} s{f', with {options}' if options else ''}",
        markup=False,
    )
