"""The journal read as an outbox: rows of `outcome` by ascending id, read-only, from the acknowledged cursor on.

There is no second queue. What the broker has not acknowledged is read again from the journal after a lost connection,
a restart or a power cut. The file may not exist yet, be busy, be damaged or be replaced by another: it is tried again
every second, `problem` says why in words, and a journal with another identity is read from its first row.

New rows are noticed by `PRAGMA data_version`, which looks at a counter in the journal's shared memory (microseconds,
no disk), on each step of the publisher's loop; SQLite has no call-back across processes, and a file watch on a WAL
fires on the checkpoint's schedule too. Every read ends its transaction at once, so checkpoints never wait.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import Counter, deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.cursor import Cursor, read_cursor, write_cursor

RETRY_NS = 1_000_000_000
SAVE_NS = 1_000_000_000  # the cursor is written once a second at most: a restart repeats what came after
BATCH_ROWS = 256

log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(slots=True)
class _Sent:
    row_id: int
    message_id: int | None
    done: bool = False


class Outbox:
    """One journal file and the cursor beside it. Not thread-safe."""

    def __init__(self, journal: Path, cursor_file: Path, backlog_rows: int) -> None:
        self.problem = ""
        self.counters: Counter[str] = Counter()
        self.cursor: Cursor | None = None  # None until the journal was opened
        self._journal, self._cursor_file, self._backlog_rows = journal, cursor_file, backlog_rows
        self._database: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._data_version = -1
        self._last_id = 0  # newest row of the journal
        self._read_id = 0  # newest row taken into `_rows`
        self._gone_id = 0  # newest row counted as gone
        self._rows: deque[Row] = deque()
        self._sent: deque[_Sent] = deque()
        self._saved: Cursor | None = None
        self._next_open_ns = 0
        self._next_save_ns = 0

    @property
    def backlog(self) -> int:
        return max(0, self._last_id - self.cursor.id) if self.cursor else 0

    @property
    def in_flight(self) -> int:
        return len(self._sent)

    def rewind(self) -> None:
        """The connection is a new one: everything unacknowledged is to be sent again."""
        self._rows.clear()
        self._sent.clear()
        if self.cursor:
            self._read_id = self.cursor.id

    def poll(self) -> None:
        """Look for new rows; cheap when there are none."""
        now_ns = time.monotonic_ns()
        if self._rows or now_ns < self._next_open_ns:
            return
        try:
            if self._database is not None and _identity_of(self._journal) != self._file:
                log.warning("journal %s was replaced", self._journal)
                self._close()
            database = self._database or self._open()
            self._read(database)
        except (sqlite3.Error, OSError) as error:
            self._close()
            self._next_open_ns = now_ns + RETRY_NS
            if not self._journal.exists():
                self.problem = f"journal {self._journal} does not exist yet; waiting for `beltline run` to create it"
            else:
                self._trouble("journal_failures", f"journal {self._journal} cannot be read: {error}; trying again")

    def next_row(self) -> Row | None:
        """The next row to send; None when there is none."""
        if not self._rows:
            self.poll()
        return self._rows[0] if self._rows else None

    def sent(self, message_id: int) -> None:
        """The row of `next_row` is on its way."""
        self._sent.append(_Sent(self._rows.popleft()["id"], message_id))

    def skip(self) -> None:
        """The row of `next_row` cannot be sent, now or ever."""
        self._sent.append(_Sent(self._rows.popleft()["id"], None, done=True))
        self._drop(1, "unreadable")
        self._advance()

    def acknowledged(self, message_id: int) -> bool:
        """The broker has it; False when it is no row's. The cursor moves when the broker also has all before it."""
        for sent in self._sent:
            if sent.message_id == message_id:
                sent.done = True
                self._advance()
                return True
        return False

    def save(self, *, now: bool = False) -> None:
        """Write the cursor when it moved, at most once a second unless `now`."""
        now_ns = time.monotonic_ns()
        if self.cursor is None or self.cursor == self._saved or not (now or now_ns >= self._next_save_ns):
            return
        self._next_save_ns = now_ns + SAVE_NS
        try:
            write_cursor(self._cursor_file, self.cursor)
        except OSError as error:
            self._trouble("cursor_failures", f"cursor {self._cursor_file} cannot be written: {error}. Free the disk.")
        else:
            self._saved = self.cursor

    def close(self) -> None:
        self.save(now=True)
        self._close()

    def _advance(self) -> None:
        while self._sent and self._sent[0].done and self.cursor:
            self.cursor = replace(self.cursor, id=self._sent.popleft().row_id)
        self._settle()

    def _open(self) -> sqlite3.Connection:
        file = _identity_of(self._journal)
        database = sqlite3.connect(f"{self._journal.absolute().as_uri()}?mode=ro", uri=True, timeout=1)
        self._database = database
        database.row_factory = sqlite3.Row
        database.text_factory = lambda raw: raw.decode("utf-8", "replace")
        found = database.execute("SELECT identity FROM journal").fetchone()
        if found is None:
            raise sqlite3.OperationalError("it has no identity yet")
        self._last_id = _last_id(database)
        self._file, self._data_version, self.problem = file, -1, ""
        before, self.cursor = self.cursor, self._start(str(found[0]))
        if before is None or before.journal != self.cursor.journal or before.id > self.cursor.id:
            self._gone_id = 0  # of another journal
        self.rewind()
        return database

    def _start(self, journal: str) -> Cursor:
        """Where to begin in this journal: at the cursor, if it is of this journal and can be true."""
        known = self.cursor
        if known is None:
            try:
                known = read_cursor(self._cursor_file)
            except (ValueError, OSError) as error:
                self._trouble("cursor_unreadable", f"{error}; publishing everything the journal holds again")
        if known is None:
            return Cursor(journal, 0)
        if known.journal != journal or known.id > self._last_id:
            self.counters["journal_replaced"] += 1
            log.warning("cursor %s is of another journal; publishing all of %s", self._cursor_file, self._journal)
            return Cursor(journal, 0, known.dropped)
        return known

    def _read(self, database: sqlite3.Connection) -> None:
        version = database.execute("PRAGMA data_version").fetchone()[0]
        if version == self._data_version and self._read_id >= self._last_id:
            return
        self._data_version = version
        self._last_id = _last_id(database)
        self._pass_over(max(self._read_id, self._last_id - self._backlog_rows))
        rows = database.execute(
            "SELECT * FROM outcome WHERE id > ? ORDER BY id LIMIT ?", (self._read_id, BATCH_ROWS)
        ).fetchall()
        for row in rows:
            self._pass_over(row["id"] - 1)
            self._rows.append(dict(row))
            self._read_id = row["id"]
        if not rows:
            self._pass_over(self._last_id)

    def _pass_over(self, row_id: int) -> None:
        """What lies up to this id will not be sent: it is beyond the backlog's bound, or gone before its turn.

        Ids follow each other without a gap, so that a jump counts what is gone.
        """
        if (gone := row_id - max(self._read_id, self._gone_id)) > 0:
            self._drop(gone, "backlog")
            self._gone_id = row_id
        self._read_id = max(self._read_id, row_id)
        self._settle()

    def _settle(self) -> None:
        """Move the cursor over what is gone, once nothing before it is under way."""
        if self.cursor and not self._sent:
            settled = self._rows[0]["id"] - 1 if self._rows else self._read_id
            self.cursor = replace(self.cursor, id=max(self.cursor.id, settled))

    def _drop(self, count: int, cause: str) -> None:
        self.counters[f"dropped_{cause}"] += count
        log.error("%d outcomes will never be published (%s)", count, cause)
        if self.cursor:
            self.cursor = replace(self.cursor, dropped=self.cursor.dropped + count)

    def _trouble(self, counter: str, problem: str) -> None:
        self.counters[counter] += 1
        if problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = self._file = None


def _last_id(database: sqlite3.Connection) -> int:
    """The highest id ever given, also when its row was removed since."""
    found = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outcome'").fetchone()
    return int(found[0]) if found else 0


def _identity_of(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_dev, status.st_ino
