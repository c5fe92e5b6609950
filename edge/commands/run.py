"""`beltline run`: the station of one station.toml, or a bench where it names no reject path."""

from __future__ import annotations

import json as json_format
import logging
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge.check import check_station
from edge.console import console as make_console
from edge.errors import BeltlineError
from edge.judge import Judged
from edge.load import bundle_path
from edge.services import SERVICES
from edge.settings import Settings, load_settings
from edge.start import started


def run(
    station: Annotated[Path, typer.Argument(metavar="STATION.toml", help="The station's settings.")],
    check: Annotated[bool, typer.Option("--check", help="Validate and explain the file, start nothing.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Inspect and decide, but keep the gate in its passing state.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the counters at the end; on a bench also one line per part.")
    ] = False,
) -> None:
    """Run the station until it is told to stop: trigger, its own frame, score, verdict, act, journal.

    A station file without a [reject] table is a bench: each picture of the folder or video is a part, and the
    verdicts are printed.
    """
    console = make_console()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    settings = load_settings(station)
    if check:
        _check(console, settings, json=json)
        return
    bench = settings.reject.kind == "none"
    rows: list[dict[str, Any]] = []

    def show(judged: Judged) -> None:
        row = _row(judged)
        if json:
            console.out(json_format.dumps(row))
        else:
            rows.append(row)

    if bench:
        logging.warning("bench: each picture is a part, triggered softly; nothing is thrown off any belt")
    if dry_run:
        logging.warning("dry run: the gate is asked to let everything pass, and nothing is meant to be rejected")
    told: list[int] = []

    def note(number: int) -> None:
        """Told to end while it starts, it ends in order, which is no crash; told again, at once."""
        told.append(number)
        signal.signal(number, signal.SIG_DFL)

    _on_signals(note)
    with started(settings, dry_run=dry_run, on_judged=show if bench else None) as running:
        _on_signals(lambda _: running.stop())
        if not told:
            running.run()
        counters = running.counters()
    if json:
        console.out(json_format.dumps({"counters": counters}))
    else:
        if bench:
            console.print(_table(rows, settings))
        for cause, count in sorted(counters.items()):
            console.print(f"{count:8d}  {cause}")
    if dropped := running.journal.dropped_writes:
        raise BeltlineError(
            f"{running.journal.path}: {dropped} writes (triggers, verdicts, outcomes) are lost: the disk did not take "
            "them. Mend it, or set [paths] journal."
        )


def _on_signals(end: Callable[[int], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda told, _: end(told))


def _row(judged: Judged) -> dict[str, Any]:
    verdict = judged.verdict
    worst = judged.score.worst if judged.score else None
    return {
        "part": str(verdict.part_id),
        "picture": judged.picture or None,
        "decision": verdict.decision.value,
        "reason": verdict.reason.value,
        "score": verdict.score,
        "threshold": verdict.threshold,
        "times_ms": {step: round(ms, 3) for step, ms in verdict.times_ms.items()},
    } | ({"worst": asdict(worst)} if worst else {})


def _table(rows: list[dict[str, Any]], settings: Settings) -> Table:
    table = Table("part", "picture", "decision", "reason", "score", "threshold", "ms", title="bench")
    table.caption = f"bundle {bundle_path(settings).name}; soft triggers, nothing was rejected"
    colours = {"ACCEPT": "green", "REJECT": "red", "FAULT": "yellow"}
    for number, row in enumerate(rows, 1):
        table.add_row(
            str(number),
            escape(row["picture"] or "-"),
            f"[{colours[row['decision']]}]{row['decision']}[/]",
            row["reason"],
            "-" if row["score"] is None else f"{row['score']:.5g}",
            f"{row['threshold']:.5g}",
            f"{row['times_ms']['total']:.1f}",
        )
    return table


def _check(console: Console, settings: Settings, *, json: bool) -> None:
    findings = check_station(settings)
    if json:
        console.out(json_format.dumps([finding._asdict() for finding in findings]))
    else:
        table = Table("", "what", "found", title="station")
        for finding in findings:
            table.add_row("[green]ok[/]" if finding.ok else "[red]problem[/]", finding.what, escape(finding.found))
        console.print(table)
        services = Table("service", "runs as", "rate", "budget", "when it dies", title="services")
        for service in SERVICES:
            services.add_row(service.name, service.runs_as, service.rate, service.budget, service.when_it_dies)
        console.print(services)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
