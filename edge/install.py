"""Put a bundle in place on this box, and put the former one back.

The order is what makes a power cut harmless: the bundle is verified in memory, written under its own id, read back,
self-tested and measured, and only then does the state name it, at once. Before that moment the box is as it was, but
for files that nobody names, which the next install removes; after it the new bundle is in place. A running station
holds its bundle in memory and goes on with it until it is started again. Where there are TensorRT and a GPU the engine
is built before the measurement, and is self-tested and measured with the graphs.
"""

from __future__ import annotations

import logging
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from edge.bundle import Bundle
from edge.durable import sync_folder, write_file
from edge.engine.build import Tick
from edge.engine.keep import keep_engine
from edge.errors import BeltlineError
from edge.installed import Event, State, Trial, archive, changing, installed_now, now, save, tidy
from edge.load import load, open_bundle
from edge.lock import hold
from edge.settings import Settings
from edge.speed import Speed, measure, write_speed

log = logging.getLogger(__name__)


class InstallError(BeltlineError):
    """The bundle was not installed, or there is none to put back; what was in place still is."""


class Installation(NamedTuple):
    bundle: Bundle
    signature: str  # "signed by workshop", or "unsigned"
    speed: Speed
    state: State
    engine: str  # what became of the engine; "" where TensorRT or a GPU is missing


def install(settings: Settings, path: Path, tick: Tick | None = None) -> Installation:
    """Install a bundle. It is on trial where another one was in place.

    Args:
        settings: of the station that is to run it.
        path: the bundle.
        tick: is told how the building of an engine goes, which takes minutes on a Jetson.

    Raises:
        BeltlineError: it is damaged, not accepted, or cannot be trusted on this box; another install runs; no
            permission; the disk. What was in place still is.

    """
    folder, engines = settings.paths.bundles, settings.paths.engines
    with _alone(folder):
        bundle, signature = open_bundle(settings, path)
        try:
            _tidy(folder, engines)
            place = archive(folder, bundle.id)
            write_file(place, bundle.archive(bundle.signature))
            written = open_bundle(settings, place)[0]
            kept = keep_engine(engines, written, tick)
            speed = measure(written, settings.bundle.threads, engines if kept and kept.record else None)
            write_speed(engines, bundle.id, speed)
            load(settings, place).chosen.close()
            with changing(folder) as state:
                new = _next(state, bundle.id)
                if new != state:
                    save(folder, new)
        except OSError as error:
            raise InstallError(
                f"{error.filename or folder}: {error.strerror}: {path} is not installed, and what was in place still "
                "is. Free some space, or see to the permissions."
            ) from error
        finally:
            _tidy(folder, engines)
        return Installation(bundle, signature, speed, new, kept.words if kept else "")


def rollback(settings: Settings) -> State:
    """Put the bundle back that was in place before. It was proven here, so it needs no trial.

    Raises:
        BeltlineError: there is none, it is not sound, another install runs, no permission, or the disk.

    """
    folder = settings.paths.bundles
    with _alone(folder):
        before = installed_now(folder)
        last = Event(bundle=before.current, result="rolled back", at=now())
        if before.trial:
            new = State(current=before.trial.back_to, previous=before.trial.back_previous, last=last)
        elif before.previous:
            new = State(current=before.previous, previous=before.current, last=last)
        else:
            raise InstallError(f"{folder}: there is no former bundle to go back to. Install one.")
        load(settings, archive(folder, new.current)).chosen.close()
        try:
            with changing(folder) as state:
                if state != before:
                    raise InstallError(f"{folder}: the station has changed what is installed. Look, and try again.")
                save(folder, new)
        except OSError as error:
            raise InstallError(
                f"{folder}: {error.strerror}: not rolled back. Free some space, or see to the permissions."
            ) from error
        return new


def _next(state: State | None, identity: str) -> State:
    """What is in place after an install. A bundle that is still on trial is never gone back to."""
    last = Event(bundle=identity, result="installed", at=now())
    if state is None:
        return State(current=identity, last=last)
    if state.current == identity:
        return state
    former, before = (
        (state.trial.back_to, state.trial.back_previous) if state.trial else (state.current, state.previous)
    )
    if before == identity:
        before = None
    if former == identity:
        return State(current=former, previous=before, last=last)
    return State(current=identity, previous=former, trial=Trial(back_to=former, back_previous=before), last=last)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One install at a time, by the user that the station runs as."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    user = os.geteuid()
    if (owner := there.stat().st_uid) != user and (there == folder or user == 0):
        name = _user(owner)
        raise InstallError(f"{there}: belongs to {name}, as whom the station runs. Use: sudo -u {name} beltline ...")
    try:
        if there != folder:
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
    except OSError as error:
        raise InstallError(
            f"{folder}: cannot be made ({error.strerror}). Make it for the station's user, or set [paths]."
        ) from None
    with hold(folder / "install", f"{folder}: another install is running. Wait until it has ended."):
        yield


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"'#{number}'"


def _tidy(folder: Path, engines: Path) -> None:
    try:
        with changing(folder) as state:
            tidy(folder, engines, state)
    except OSError as error:
        log.warning("%s: leftovers stay until the next install: %s", folder, error)
