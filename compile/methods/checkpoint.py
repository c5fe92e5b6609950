"""Checkpoints of fits: a fit that is killed goes on from its last one and ends with the same bits.

A fit is known by its place: `resumable(folder)` is entered around one, and the descents inside
(`compile.methods.descent`) take files by their turn. Who enters it answers for the folder: that the same data,
settings, code and machine are behind it. A file is written beside its place and renamed, so it is whole or not there;
it is read without unpickling code. A damaged one counts as none. A full disk costs the checkpoint, not the fit.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from typing import Any

import torch

EVERY_S = 10.0
SHARE = 30  # a checkpoint may take at most one part in so many of the time

log = logging.getLogger(__name__)
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)
_turns: ContextVar[Iterator[int]] = ContextVar("turns")


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Keep the checkpoints of the descents inside in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    kept, turn = _folder.set(folder), _turns.set(count())
    try:
        yield
    finally:
        _folder.reset(kept)
        _turns.reset(turn)


@contextmanager
def apart(name: str) -> Iterator[None]:
    """Keep those of the descents inside in a folder of their own, where any are kept: other descents take turns too."""
    folder = _folder.get()
    with resumable(folder / name) if folder else nullcontext():
        yield


class Checkpoint:
    """The file of the next descent; outside of `resumable` nothing is kept."""

    def __init__(self) -> None:
        folder = _folder.get()
        self._file = None if folder is None else folder / f"{next(_turns.get())}.pt"
        self._due = time.monotonic() + EVERY_S

    def read(self) -> dict[str, Any] | None:
        if self._file is None:
            return None
        try:
            found: dict[str, Any] = torch.load(self._file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            log.warning("%s: damaged (%s); its fit starts anew", self._file, type(error).__name__)
            return None
        return found

    @property
    def due(self) -> bool:
        return self._file is not None and time.monotonic() >= self._due

    def write(self, state: dict[str, Any]) -> None:
        if self._file is None:
            return
        started = time.monotonic()
        part = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        held = io.BytesIO()
        torch.save(state, held)
        try:
            with part.open("wb") as stream:
                stream.write(held.getbuffer())
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(self._file)
        except OSError as error:
            part.unlink(missing_ok=True)
            log.warning("%s: no checkpoint (%s); the fit goes on without", self._file, error.strerror)
            self._file = None
        ended = time.monotonic()
        self._due = ended + max(EVERY_S, SHARE * (ended - started))
