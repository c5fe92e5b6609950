"""`beltline install`, `rollback` and `bundles`: what is in place on this box, and how it is changed."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from edge.console import building, console
from edge.errors import BeltlineError
from edge.install import install as install_bundle
from edge.install import rollback as put_back
from edge.installed import SUFFIX, State, read_state
from edge.load import open_bundle
from edge.settings import Settings, load_settings
from edge.speed import Measured

STATION = Path("/etc/beltline/station.toml")
StationFile = Annotated[
    Path, typer.Argument(metavar="[STATION.toml]", help="The station that is to run it: its keys, its folders.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def install(
    bundle: Annotated[Path, typer.Argument(help="The bundle to install.")],
    station: StationFile = STATION,
    json: Json = False,
) -> None:
    """Verify a bundle, self-test and measure it on this box, and put it in place; on a failure nothing changes.

    The station runs it from its next start. It is then on trial, and the former bundle comes back by itself if it
    faults: see docs/install.md.
    """
    settings = load_settings(station)
    with building() as tick:
        done = install_bundle(settings, bundle, tick)
    manifest, speed, state = done.bundle.manifest, done.speed, done.state
    if json:
        found = {"name": manifest.name, "version": manifest.version, "signature": done.signature, "engine": done.engine}
        told = _told(state, settings) | found | {"speed": speed.model_dump(mode="json")}
        console().out(json_format.dumps(told))
        return
    say = console()
    say.print(f"{manifest.name} {manifest.version}, id {done.bundle.id[:12]}, {done.signature}", markup=False)
    for name, each in speed.graphs.items():
        say.print(f"  graph {name}: {describe(each)}", markup=False)
    if done.engine:
        say.print(f"  {done.engine}", markup=False)
    if speed.engine:
        say.print(f"  engine: {describe(speed.engine)}", markup=False)
    asked = settings.bundle.graph
    by = "the engine, and if it fails " if speed.engine and speed.engine.chosen else ""
    words = f"{by}graph {speed.graph}" if asked == "auto" else f"graph {asked}, as the station file asks"
    say.print(f"  runs {words}", markup=False)
    _print_change(state, settings)


def rollback(station: StationFile = STATION, json: Json = False) -> None:
    """Put the bundle back that was in place before; the station runs it from its next start."""
    settings = load_settings(station)
    state = put_back(settings)
    if json:
        console().out(json_format.dumps(_told(state, settings)))
        return
    console().print(f"bundle {state.current[:12]} is in place again", markup=False)
    _print_change(state, settings)


def bundles(station: StationFile = STATION, json: Json = False) -> None:
    """Show which bundles are installed, and how the trial of the newest goes."""
    settings = load_settings(station)
    folder = settings.paths.bundles
    state = read_state(folder)
    found = [_row(settings, state, file) for file in sorted(folder.glob(f"*{SUFFIX}"))] if state else []
    if json:
        console().out(json_format.dumps({"bundles": found} | (_told(state, settings) if state else {})))
        return
    if state is None:
        console().print(f"{folder}: nothing is installed.", markup=False)
        return
    table = Table("", "id", "name", "signature", title=str(folder), box=None)
    for row in found:
        table.add_row(row["role"], row["id"][:12], escape(row["name"]), escape(row["signature"]))
    console().print(table)
    _print_change(state, settings)


def describe(each: Measured) -> str:
    """The speed of one graph, for people."""
    if each.p50_ms is None or each.p99_ms is None:
        return f"not run: {each.problem}"
    return f"gives its golden answers, p50 {each.p50_ms:.2f} ms, p99 {each.p99_ms:.2f} ms ({each.runs} runs)"


def _row(settings: Settings, state: State, file: Path) -> dict[str, Any]:
    role = {state.current: "current", state.previous: "previous"}.get(file.stem, "")
    try:
        bundle, signature = open_bundle(settings, file)
    except BeltlineError as error:
        return {"id": file.stem, "role": role, "name": "cannot be used", "signature": str(error)}
    name = f"{bundle.manifest.name} {bundle.manifest.version}"
    return {"id": file.stem, "role": role, "name": name, "signature": signature}


def _told(state: State, settings: Settings) -> dict[str, Any]:
    return state.model_dump(mode="json") | {"used": settings.bundle.path is None}


def _print_change(state: State, settings: Settings) -> None:
    say = console()
    if last := state.last:
        why = f": {last.why}" if last.why else ""
        say.print(f"last: bundle {last.bundle[:12]} {last.result} {last.at}{why}", markup=False)
    if state.trial:
        stage = "running" if state.trial.running else "waiting for the station's next start"
        say.print(
            f"trial: {stage}, {settings.bundle.trial_parts} parts; bundle {state.trial.back_to[:12]} comes back if it "
            "faults",
            markup=False,
        )
    if settings.bundle.path:
        path = settings.bundle.path
        say.print(f"not used: the station file has [bundle] path = {path}; remove that line", markup=False)
    else:
        say.print("a running station takes a change at its next start: sudo systemctl restart beltline", markup=False)
