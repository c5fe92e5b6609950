"""One process at a time: a lock beside the file that must have one owner, held until it is closed or the process ends.

`flock` on `<file>.lock`. The kernel releases it with the process, however that ends, and keeps it while the process is
stopped. The lock's file stays behind: who removed it could let two owners in. It is opened for reading alone, and where
the disk is full or read-only and has none yet, the file itself is locked if it is there: no disk may keep a station
from starting.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from edge.errors import BeltlineError

log = logging.getLogger(__name__)


class LockError(BeltlineError):
    """Another process owns the file, or the lock cannot be made. The message names the file and the next step."""


def hold(file: Path, owned: str) -> IO[bytes]:
    """Own `file` until the returned object is closed. `owned`: the message for when another process does.

    Raises:
        LockError: another process owns it, or its folder is missing or not writable.

    """
    place = lock_of(file)
    try:
        lock = os.fdopen(_open(place, file), "rb")
    except OSError as error:
        raise LockError(f"{file}: {error.strerror}. Its folder must exist and be writable, or set [paths].") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise LockError(owned if isinstance(error, BlockingIOError) else f"{place}: {error.strerror}") from None
    return lock


def _open(place: Path, file: Path) -> int:
    try:
        return os.open(place, os.O_RDONLY | os.O_CREAT, 0o640)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        log.error("%s: %s; going on without it", place, error.strerror)  # noqa: TRY400 - the message says it all
    with suppress(OSError):
        return os.open(file, os.O_RDONLY)
    return os.memfd_create(file.name)  # nobody can own what nobody can write


def is_held(file: Path) -> bool:
    """Whether a process owns `file` now. Makes nothing."""
    try:
        with lock_of(file).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # nobody ever ran here, or one may not look: the start will tell
        return False
    return False


def lock_of(file: Path) -> Path:
    return file.with_name(file.name + ".lock")
