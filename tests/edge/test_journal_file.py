from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from edge.journal import Journal
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
    with sqlite3.connect(file) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


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
