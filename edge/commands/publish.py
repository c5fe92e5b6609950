"""`beltline publish`: the outbox of one station, as a process of its own."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Annotated

import typer

from edge.errors import BeltlineError
from edge.publish import cursor_of, lock, look_at, publisher
from edge.settings import load_settings
from edge.watchdog import Watchdog


def publish(
    station: Annotated[Path, typer.Argument(metavar="STATION.toml", help="The station's settings, with [mqtt].")],
) -> None:
    """Send the journal's outcomes to the MQTT broker: in order, at least once, across every outage."""
    settings = load_settings(station)
    if settings.mqtt is None:
        raise BeltlineError(
            f"{station}: there is no [mqtt] table, so there is nothing to publish to. Add one with host."
        )
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    journal = settings.paths.journal
    stop = False

    def end(_number: int, _frame: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    where = settings.station
    with (
        lock(cursor_of(journal)),
        Watchdog() as watchdog,
        publisher(
            settings.mqtt,
            where.site,
            where.line,
            where.name,
            journal,
            look=lambda: look_at(settings.paths.control),
        ) as running,
    ):
        running.run(watchdog, lambda: stop)
