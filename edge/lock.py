"""One process at a time: a lock beside the file that must have one owner, held until it is closed or the process ends.

`flock` on `<file>.lock`. The kernel releases it with the process, however that ends, and keeps it while the process is
stopped. The lock's file stays behind: who removed it could let two owners in. The file itself is locked, too, where it
is there: on a disk that is full or read-only and has no lock yet it is all there is, and no disk may keep a station
from starting. `flock` does not meet the locks of SQLite.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from edge.errors import BeltlineError

log = logging.getLogger(__name__)


class LockError(BeltlineError):
    """Another process owns the file, or the lock cannot be made. The message names the file and the next step."""


def hold(file: Path, owned: str) -> ExitStack:
    """Own `file` until the returned object is closed. `owned`: the message for when another process does.

    Raises:
        LockError: another process owns it, or its folder is missing or not writable.

    """
    held = ExitStack()
    try:
        for descriptor in _open(file, os.O_CREAT):
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise LockError(owned) from None
    except OSError as error:
        held.close()
        raise LockError(f"{file}: {error.strerror}. Its folder must exist and be writable, or set [paths].") from None
    return held


def is_held(file: Path) -> bool | None:
    """Whether a process owns `file` now; None where this user may not look. Makes nothing."""
    with ExitStack() as held:
        for place in (lock_of(file), file):
            try:
                descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
            except PermissionError:
                return None
            except OSError:  # nobody ever ran here
                continue
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _open(file: Path, create: int) -> Iterator[int]:
    """The lock's file, and the file itself where it is there: who started on a full disk could make no lock."""
    place = lock_of(file)
    try:
        yield os.open(place, os.O_RDONLY | create, 0o640)
    except OSError as error:
        if create and error.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        if create:
            log.error("%s: %s; going on without it", place, error.strerror)  # noqa: TRY400 - the message says it all
    with suppress(OSError):
        yield os.open(file, os.O_RDONLY | os.O_NONBLOCK)


def lock_of(file: Path) -> Path:
    return file.with_name(file.name + ".lock")
