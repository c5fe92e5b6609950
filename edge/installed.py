"""The folder of installed bundles: which one is current, which was before, and whether the newest is still on trial.

    ID.bundle         an installed bundle, named by its whole id
    installed.json    the state: replaced at once, so that all of it changes or nothing
    current           link to the bundle that the station runs, for people and other programs
    previous          link to the one before, where there is one

The state is the truth; the links say the same and are made again from it by whoever changes or starts next, should a
power cut have come between. Where the state cannot be read (a damaged disk) the links stand in for it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.durable import UNFINISHED, sync_folder, write_file, write_link
from edge.errors import BeltlineError

log = logging.getLogger(__name__)

STATE = "installed.json"
SUFFIX = ".bundle"
PATIENCE_S = 10.0  # for whoever changes the state, which takes milliseconds
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Trial(Record):
    """The current bundle has yet to prove itself; what comes back if it does not."""

    running: bool = False  # a station runs it, or ended without notice
    back_to: Id
    back_previous: Id | None = None


class Event(Record):
    """How the last change ended, for people."""

    bundle: Id
    result: Literal["installed", "passed", "failed", "rolled back"]
    why: str = ""
    at: str  # ISO 8601, UTC


class State(Record):
    current: Id
    previous: Id | None = None
    trial: Trial | None = None
    last: Event | None = None

    @property
    def kept(self) -> set[str]:
        """Every bundle that may be needed again."""
        back = (self.trial.back_to, self.trial.back_previous) if self.trial else ()
        return {identity for identity in (self.current, self.previous, *back) if identity}


class InstalledError(BeltlineError):
    """Nothing is installed, or the folder cannot be changed."""


def archive(folder: Path, identity: str) -> Path:
    return folder / f"{identity}{SUFFIX}"


def read_state(folder: Path) -> State | None:
    """What is installed; None where nothing is. Changes nothing.

    Raises:
        InstalledError: this user may not look.

    """
    try:
        return State.model_validate_json((folder / STATE).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.error("%s: damaged (%s); the links stand in for it", folder / STATE, error.errors()[0]["msg"])  # noqa: TRY400
        return _by_links(folder)
    except OSError as error:
        raise InstalledError(f"{folder}: {error.strerror}. Use sudo -u beltline, or set [paths] bundles.") from None


def installed_now(folder: Path) -> State:
    """What is installed.

    Raises:
        InstalledError: nothing is.

    """
    if state := read_state(folder):
        return state
    raise InstalledError(
        f"{folder}: nothing is installed. Use `beltline install`, or name a bundle with [bundle] path."
    )


@contextmanager
def changing(folder: Path) -> Iterator[State | None]:
    """The state, with the right to change it, and with the links that belong to it.

    Raises:
        InstalledError: somebody else changes it, and does not come to an end.
        OSError: the disk.

    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # the folder is its own lock: that takes no room
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while not _locked(descriptor):
            if time.monotonic() > deadline_s:
                raise InstalledError(f"{folder}: another process changes what is installed, and hangs. End it.")
            time.sleep(0.02)
        state = read_state(folder)
        if state:
            _link(folder, state)
        yield state
    finally:
        os.close(descriptor)


def save(folder: Path, state: State) -> None:
    """Make this the state. Only within `changing`.

    Raises:
        OSError: the disk; the former state stands.

    """
    try:
        write_file(folder / STATE, state.model_dump_json(indent=1).encode())
    except OSError as error:
        if read_state(folder) != state:
            raise
        log.warning("%s: changed, but a power cut might undo it: %s", folder, error.strerror)
    try:
        _link(folder, state)
    except OSError as error:
        log.warning("%s: the links are not made: %s; the next start makes them", folder, error.strerror)


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def tidy(folder: Path, engines: Path, state: State | None) -> None:
    """Remove what nobody needs, within `changing`: unfinished files, and bundles that the state does not name.

    What this box made for such a bundle goes first, so that nothing is left of it that nothing names.
    """
    kept = state.kept if state else set()
    for file in list(folder.iterdir()):
        unneeded = file.suffix == SUFFIX and file.stem not in kept
        if unneeded:
            shutil.rmtree(engines / file.stem, ignore_errors=True)
        if unneeded or file.name.endswith(UNFINISHED):
            file.unlink()
    sync_folder(folder)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _link(folder: Path, state: State) -> None:
    for name, identity in (("current", state.current), ("previous", state.previous)):
        link = folder / name
        target = f"{identity}{SUFFIX}" if identity else None
        if _target(link) == target:
            continue
        if target:
            write_link(link, target)
        else:
            link.unlink()
            sync_folder(folder)


def _target(link: Path) -> str | None:
    return str(link.readlink()) if link.is_symlink() else None


def _by_links(folder: Path) -> State | None:
    current, previous = (_target(folder / name) for name in ("current", "previous"))
    try:
        return State(
            current=(current or "").removesuffix(SUFFIX),
            previous=previous.removesuffix(SUFFIX) if previous else None,
        )
    except ValidationError:
        return None
