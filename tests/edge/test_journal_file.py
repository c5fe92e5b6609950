from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from edge.journal import Journal
from edge.journal_file import unusable
from edge.lock import hold
from edge.outbox import Outbox
from edge.tally import journal_rows
from firmware_bridge.parts import Decision, Outcome, PartId, Reason

KEEP = 500


def settle(journal: Journal, epoch: int, parts: range) -> None:
    """Settle parts, a few per commit, as a belt does."""
    for part in parts:
        journal.outcome(Outcome(PartId(epoch, part), Decision.REJECT, Reason.SCORE_ABOVE_THRESHOLD, part))
        if part % 100 == 0:
            assert journal.flush(5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A journal that lived longer than it remembers: two epochs, 3000 parts, 500 kept."""
    path = tmp_path / "journal.db"
    journal = Journal(path, keep=KEEP)
    journal.open()
    settle(journal, 7, range(1, 1001))
    settle(journal, 8, range(1, 2001))
    journal.close()
    return path


def test_old_outcomes_go_and_the_last_of_each_epoch_stays(file: Path) -> None:
    kept = [(row["epoch"], row["part"]) for row in journal_rows(file)]
    assert kept == [(7, 1000), *((8, part) for part in range(1501, 2001))]
    again = Journal(file)
    again.open()
    assert [again.last_part(epoch) for epoch in (7, 8)] == [1000, 2000]
    again.close()


def test_the_file_stops_growing(file: Path) -> None:
    journal = Journal(file, keep=KEEP)
    journal.open()
    size = file.stat().st_size
    settle(journal, 9, range(1, 3001))
    journal.close()
    assert file.stat().st_size <= 1.2 * size
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_journal_that_kept_more_is_shortened_bit_by_bit(file: Path) -> None:
    journal = Journal(file, keep=10)
    journal.open()
    settle(journal, 9, range(1, 101))
    journal.close()
    kept = [(row["epoch"], row["part"]) for row in journal_rows(file)]
    assert kept == [(7, 1000), (8, 2000), *((9, part) for part in range(91, 101))]


def test_what_went_before_it_was_sent_is_counted(file: Path) -> None:
    outbox = Outbox(file, file.with_name("cursor"), backlog_rows=KEEP)
    outbox.poll()
    row = outbox.next_row()
    assert row is not None
    assert (row["epoch"], row["part"]) == (8, 1501)
    assert outbox.counters["dropped_backlog"] == 2500
    outbox.close()


def foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE photos (name TEXT)")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.mkdir(), "a folder or device"),
        (lambda path: path.symlink_to("/dev/full"), "a folder or device"),
        (lambda path: path.write_bytes(b"a bundle, or somebody's thesis"), "some other file"),
        (foreign_database, "some other file"),
    ],
)
def test_what_is_somebody_elses_is_never_taken_for_a_journal(
    tmp_path: Path, make: Callable[[Path], object], why: str
) -> None:
    path = tmp_path / "thesis"
    make(path)
    assert why in str(unusable(path))
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "the folder" in str(unusable(tmp_path / "nowhere" / "journal.db"))


def test_a_journal_stays_one_when_it_is_damaged(file: Path) -> None:
    assert unusable(file) is None
    assert unusable(file.with_name("new.db")) is None
    hold(file, "taken").close()
    raw = bytearray(file.read_bytes())
    for damage in (bytes(100) + raw[100:], raw[:5000], b"", raw[:100] + bytes(4000) + raw[4100:]):
        file.write_bytes(damage)
        assert unusable(file) is None
