"""`beltline doctor`: what this box has and what it lacks."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edge.bundle import read_bundle
from edge.console import console as make_console
from edge.doctor.examine import examine
from edge.errors import BundleError
from edge.installed import InstalledError
from edge.load import bundle_path
from edge.settings import load_settings

MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}


def doctor(
    station: Annotated[
        Path | None, typer.Argument(metavar="[STATION.toml]", help="Also look at this station's devices and broker.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Also self-test and measure each graph of this bundle; default: the station's."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON list of findings.")] = False,
) -> None:
    """Say what this box has and what it lacks; exit code 1 when something needed is missing."""
    settings = load_settings(station) if station else None
    opened = None
    problem = ""
    try:
        if file := bundle or (bundle_path(settings) if settings else None):
            opened = read_bundle(file)
    except InstalledError:
        pass  # stands among the findings
    except BundleError as error:
        problem = str(error)
    console = make_console()
    findings = [finding._asdict() for finding in examine(settings, opened)]
    if problem:
        findings.append({"area": "bundle", "what": "file", "found": problem, "level": "missing"})
    if json:
        console.out(json_format.dumps(findings, indent=2))
    else:
        table = Table("", "area", "what", "found", title="this box")
        for finding in findings:
            table.add_row(MARKS[finding["level"]], finding["area"], finding["what"], escape(finding["found"]))
        console.print(table)
    if any(finding["level"] == "missing" for finding in findings):
        raise typer.Exit(1)
