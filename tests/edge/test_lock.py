"""The lock of a file: real processes, stopped and killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.lock import LockError, hold, is_held

OWNER = """
import sys, time
from pathlib import Path
from edge.lock import hold
kept = hold(Path(sys.argv[1]), "taken")
print("held", flush=True)
time.sleep(60)
"""


def test_one_owner_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    assert not is_held(file)
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"
    with subprocess.Popen([sys.executable, "-c", OWNER, str(file)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == b"held\n"
        os.kill(owner.pid, signal.SIGSTOP)
        assert is_held(file)
        with pytest.raises(LockError, match="somebody has it"):
            hold(file, "somebody has it")
        owner.kill()
    assert not is_held(file)
    hold(file, "").close()


@pytest.mark.parametrize("folder", ["nowhere", "file"])
def test_a_folder_that_cannot_hold_it_is_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LockError, match=rf"{folder}/journal\.db: .*folder must exist.*\[paths\]"):
        hold(tmp_path / folder / "journal.db", "")
    assert not is_held(tmp_path / folder / "journal.db")


def opening(refusal: int) -> Callable[..., int]:
    """`os.open` on a disk that makes no new file."""
    really_open = os.open

    def refuse_new(path: Path, flags: int, *more: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(refusal, os.strerror(refusal), str(path))
        return really_open(path, flags, *more)

    return refuse_new


@pytest.mark.parametrize("there", [True, False])
def test_a_read_only_disk_keeps_no_station_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    file = tmp_path / "journal.db"
    if there:
        file.touch()
    monkeypatch.setattr(os, "open", opening(errno.EROFS))
    lock = hold(file, "taken")
    if there:
        with pytest.raises(LockError, match="taken"):
            hold(file, "taken")
    lock.close()
    hold(file, "taken").close()


def test_who_started_on_a_full_disk_owns_the_file_still_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "journal.db"
    file.touch()
    with monkeypatch.context() as disk:
        disk.setattr(os, "open", opening(errno.ENOSPC))
        lock = hold(file, "taken")
    assert is_held(file)
    with pytest.raises(LockError, match="taken"):
        hold(file, "taken")
    lock.close()
    assert not is_held(file)
