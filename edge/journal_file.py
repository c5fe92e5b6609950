"""The journal's SQLite file: its tables, group commits, and what is done when the disk fails.

WAL with synchronous=FULL: what is committed survives a power cut. Any failure closes the file; the next commit opens it
again. A file that was removed or replaced under the open connection would take writes that nobody finds again: its
inode is compared before and after each commit. A file that is no database any more is moved aside, never overwritten.
Each commit removes what is older than the outcomes to keep, but for the last part of each epoch: SQLite fills the room
again, so the file stops growing.
Every write is idempotent, so a batch whose fate is unknown may be committed again.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from edge.lock import lock_of

log = logging.getLogger(__name__)

REMEMBERED = 4096  # latest settled parts that are read when the file is opened

SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS boot (
    boot_id TEXT PRIMARY KEY, monotonic_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS trigger (
    epoch INTEGER NOT NULL, part INTEGER NOT NULL, count INTEGER NOT NULL, at_ns INTEGER NOT NULL,
    boot_id TEXT NOT NULL, verdict TEXT, PRIMARY KEY (epoch, part)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcome (
    id INTEGER PRIMARY KEY AUTOINCREMENT, epoch INTEGER NOT NULL, part INTEGER NOT NULL,
    decision TEXT NOT NULL, reason TEXT NOT NULL, verdict_decision TEXT, verdict_reason TEXT,
    score REAL, threshold REAL, recipe TEXT, trigger_count INTEGER, outcome_count INTEGER,
    trigger_ns INTEGER, wall_ns INTEGER NOT NULL, boot_id TEXT NOT NULL, recovered INTEGER NOT NULL,
    dry_run INTEGER NOT NULL, input_crc32 INTEGER, times_ms TEXT NOT NULL, UNIQUE (epoch, part));
CREATE TRIGGER IF NOT EXISTS settle AFTER INSERT ON outcome BEGIN
    DELETE FROM trigger WHERE epoch = NEW.epoch AND part = NEW.part; END;
"""
OUTCOME_COLUMNS = (
    *("epoch", "part", "decision", "reason", "verdict_decision", "verdict_reason", "score", "threshold", "recipe"),
    *("trigger_count", "outcome_count", "trigger_ns", "wall_ns", "boot_id", "recovered", "dry_run", "input_crc32"),
    "times_ms",
)
INSERT_OUTCOME = (  # not OR IGNORE: what is ignored takes an id, and the outbox counts missing ids
    f"INSERT INTO outcome ({', '.join(OUTCOME_COLUMNS)}) "  # noqa: S608 - constants
    f"SELECT {', '.join(f'?{number}' for number in range(1, len(OUTCOME_COLUMNS) + 1))} "
    "WHERE NOT EXISTS (SELECT 1 FROM outcome WHERE epoch = ?1 AND part = ?2)"
)
SQLITE_MAGIC = b"SQLite format 3\0"
Write = tuple[str, tuple[Any, ...]]
INSERT_TRIGGER = (
    "INSERT OR IGNORE INTO trigger SELECT ?1, ?2, ?3, ?4, ?5, NULL "
    "WHERE NOT EXISTS (SELECT 1 FROM outcome WHERE epoch = ?1 AND part = ?2)"
)
SET_VERDICT = "UPDATE trigger SET verdict = ? WHERE epoch = ? AND part = ?"
FORGET = """
DELETE FROM outcome WHERE id IN (
    SELECT id FROM outcome AS old WHERE id <= (SELECT max(id) FROM outcome) - ?
    AND part < (SELECT max(part) FROM outcome WHERE epoch = old.epoch) ORDER BY id LIMIT ?)
"""  # an epoch that comes again must be known
FORGOTTEN_AT_ONCE = 1000  # more than one commit brings, at any belt's pace
LAST_PARTS = """
WITH RECURSIVE known(epoch) AS (
    SELECT min(epoch) FROM {0} UNION ALL
    SELECT (SELECT min(epoch) FROM {0} WHERE epoch > known.epoch) FROM known WHERE known.epoch IS NOT NULL)
SELECT epoch, (SELECT max(part) FROM {0} WHERE {0}.epoch = known.epoch) FROM known WHERE epoch IS NOT NULL
"""  # by the index alone: the journal grows for years, a start may not


def unusable(path: Path) -> str | None:
    """Why no journal can ever be at `path`, in words; None where one is, was or may be, on a healthy disk or not.

    What is there and is no journal is somebody's: it must not be written over, nor moved aside. A journal that was
    damaged beyond its first bytes is known by the lock beside it, which only a station makes.
    """
    try:
        if not path.exists():
            return None if path.parent.is_dir() else f"{path}: the folder {path.parent} does not exist. Create it."
        if not path.is_file():
            return f"{path}: a folder or device, no file."
        with path.open("rb") as file:
            start = file.read(len(SQLITE_MAGIC))
        if not start or (start != SQLITE_MAGIC and lock_of(path).exists()):
            return None
        if start == SQLITE_MAGIC:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
                tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables or {"journal", "boot", "trigger", "outcome"} <= tables:
                return None
    except PermissionError:
        return f"{path}: not permitted. Give this user the right to read and write it."
    except (OSError, sqlite3.Error):
        return None  # the disk's trouble: the station inspects on, and tries again
    return f"{path}: some other file, no journal of a station. Move it away."


class Past(NamedTuple):
    """What an opened file remembers."""

    last_parts: list[tuple[int, int]]  # epoch, highest part; an epoch may be there twice
    settled: list[tuple[int, int]]  # epoch, part; the latest, oldest first
    waiting: list[tuple[int, int, int, int, str, str | None]]  # rows of `trigger`


class JournalFile:
    """Used from one thread. `on_open` hears what the file remembers, each time it is opened; `keep` outcomes stay."""

    def __init__(self, path: Path, boot_id: str, on_open: Callable[[Past], None], keep: int) -> None:
        self.failures = 0
        self._keep = keep
        self._path, self._boot_id, self._on_open = path, boot_id, on_open
        self._database: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._trouble = ""

    @property
    def failing(self) -> bool:
        return self._database is None

    def open(self) -> bool:
        """Open or create the file. False when the disk refuses."""
        try:
            database = sqlite3.connect(self._path, isolation_level=None, timeout=5, check_same_thread=False)
        except sqlite3.Error as error:
            return self._fail(str(error))
        try:
            past = _prepare(database, self._boot_id)
        except sqlite3.OperationalError as error:
            database.close()
            return self._fail(str(error))
        except sqlite3.DatabaseError as error:
            database.close()
            return self._move_aside(str(error))
        if self._trouble:
            log.warning("journal %s: on disk again", self._path)
        self._database, self._inode, self._trouble = database, self._find_inode(), ""
        self._on_open(past)
        return True

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def commit(self, batch: Iterable[Write]) -> bool:
        """Write all of the batch or nothing. False when the disk refuses."""
        if self._database is not None and not self._is_there():
            self._fail("the file was removed or replaced")
        if self._database is None and not self.open():
            return False
        assert self._database is not None
        try:
            with self._database:
                self._database.execute("BEGIN")
                for statement, values in batch:
                    self._database.execute(statement, values)
                self._database.execute(FORGET, (self._keep, FORGOTTEN_AT_ONCE))
        except (sqlite3.Error, OverflowError) as error:
            return self._fail(str(error))
        return self._is_there() or self._fail("the file was removed or replaced")

    def _fail(self, why: str) -> bool:
        if why != self._trouble:  # once, not at each attempt
            log.error("journal %s: %s; outcomes are held in memory and tried again", self._path, why)
        self._trouble = why
        self.failures += 1
        self.close()
        return False

    def _move_aside(self, why: str) -> bool:
        stamp = time.time_ns()
        try:
            for suffix in ("", "-wal", "-shm"):
                file = self._path.with_name(self._path.name + suffix)
                if file.exists():
                    file.replace(file.with_name(f"{self._path.name}.damaged-{stamp}{suffix}"))
        except OSError as error:
            return self._fail(f"damaged ({why}) and cannot be moved aside ({error.strerror})")
        return self._fail(f"damaged ({why}), moved aside")

    def _is_there(self) -> bool:
        return self._inode is not None and self._find_inode() == self._inode

    def _find_inode(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def _prepare(database: sqlite3.Connection, boot_id: str) -> Past:
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.executescript(SCHEMA)
    with database:
        database.execute("BEGIN")
        database.execute("INSERT INTO journal SELECT ? WHERE NOT EXISTS (SELECT 1 FROM journal)", (uuid4().hex,))
        now = (boot_id, time.monotonic_ns(), time.time_ns())
        database.execute("INSERT OR IGNORE INTO boot VALUES (?, ?, ?)", now)
    last_parts = [row for table in ("outcome", "trigger") for row in database.execute(LAST_PARTS.format(table))]
    settled = database.execute("SELECT epoch, part FROM outcome ORDER BY id DESC LIMIT ?", (REMEMBERED,)).fetchall()
    return Past(last_parts, settled[::-1], database.execute("SELECT * FROM trigger").fetchall())
