"""`beltline status`, `ack` and `jog-gate`: look at the running station and handle its gate."""

from __future__ import annotations

import json as json_format
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edge.console import console as make_console
from edge.control import ask
from edge.settings import Paths, load_settings

REFRESH_S = 0.5
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and end.")]
StationFile = Annotated[
    Path | None,
    typer.Argument(metavar="[STATION.toml]", help="The station's settings; without them the usual control socket."),
]


def status(
    station: StationFile = None,
    json: Json = False,
    once: Annotated[bool, typer.Option("--once", help="Print once instead of refreshing.")] = False,
) -> None:
    """Show what the running station does: state, outcomes, counters by cause, latency."""
    socket = _socket(station)
    console = make_console()
    if json:
        console.print_json(json_format.dumps(ask(socket, "status")))
        return
    if once or not console.is_terminal:
        console.print(_render(ask(socket, "status")))
        return
    try:
        with Live(_render(ask(socket, "status")), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(REFRESH_S)
                live.update(_render(ask(socket, "status")), refresh=True)
    except KeyboardInterrupt:
        return


def ack(station: StationFile = None, json: Json = False) -> None:
    """Acknowledge the latched fault: the belt's permit returns if all is well again."""
    ask(_socket(station), "ack")
    make_console().print('{"ok": true}' if json else "Acknowledged: the belt may run.")


def jog_gate(station: StationFile = None, json: Json = False) -> None:
    """Cycle the reject gate once. Keep hands off the gate."""
    ask(_socket(station), "jog-gate")
    make_console().print('{"ok": true}' if json else "The gate was told to cycle once.")


def _socket(station: Path | None) -> Path:
    return load_settings(station).paths.control if station else Paths().control


def _render(status: dict[str, Any]) -> Group:
    path, total = status["path"], status["total_ms"]
    head = Table.grid(padding=(0, 2))
    state = Text(status["state"], style="bold red" if status["fault"] else "bold green")
    head.add_row("state", state)
    if status["fault"]:
        head.add_row("fault", Text(status["fault"], style="red"))
    if path["inhibited"]:
        head.add_row("dry run", Text("the gate is inhibited: nothing is rejected", style="bold yellow"))
    head.add_row("belt", "may run" if path["permit"] else "no permit")
    head.add_row("reject path", ("ready" if path["ready"] else "not ready") if path["connected"] else "not connected")
    head.add_row("bundle", f"{status['bundle'][:12]}, graph {status['graph']}, recipe {status['recipe']}")
    runtime = status["runtime"]
    head.add_row("runtime", runtime["name"] + (f", engine {runtime['engine'][:12]}" if runtime["engine"] else ""))
    if why := runtime["instead_of_engine"]:
        head.add_row("no engine", Text(why, style="yellow"))
    head.add_row("signature", Text(status["signature"], style="yellow" if status["signature"] == "unsigned" else ""))
    if status["trial"]:
        head.add_row("trial", Text(status["trial"]))
    head.add_row("threshold", f"{status['threshold']:.6g}")
    head.add_row("journal", "disk fails: held in memory" if status["journal"]["failing"] else "on disk")
    if total["p50"] is not None:
        figures = f"p50 {total['p50']:.1f}  p99 {total['p99']:.1f}  max {total['max']:.1f} ms"
        head.add_row("trigger to verdict", figures)
    counters = Table("counter", "count", box=None)
    for title, group in (
        ("", status["counters"]),
        ("source ", status["source"]),
        ("path ", path["counters"]),
        ("journal ", {cause: n for cause, n in status["journal"].items() if cause != "failing"}),
    ):
        for cause, count in sorted(group.items()):
            counters.add_row(title + cause.replace("_", " "), str(count))
    return Group(head, Text(), counters)
