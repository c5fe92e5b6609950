from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edge.journal import Journal
from edge.journal_file import INSERT_OUTCOME, OUTCOME_COLUMNS, JournalFile, Write, unusable
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


def test_whatever_goes_before_its_turn_is_counted_once(tmp_path: Path) -> None:
    """A broker that acknowledges nothing for longer than the journal remembers, and reconnections on the way."""
    path = tmp_path / "journal.db"
    journal = Journal(path, keep=50)
    journal.open()
    settle(journal, 7, range(1, 101))
    outbox = Outbox(path, tmp_path / "cursor", backlog_rows=50)
    sent: list[tuple[int, int]] = []

    def send(count: int) -> None:
        for _ in range(count):
            if row := outbox.next_row():
                sent.append((row["epoch"], row["part"]))
                outbox.sent(len(sent))

    send(30)
    for epoch in (8, 9, 10):
        settle(journal, epoch, range(1, 201))
        send(20)
        outbox.rewind()
        unacknowledged = len(sent)
        send(20)
    for message in range(1, len(sent) + 1):
        outbox.acknowledged(message)
    journal.close()
    while outbox.next_row():
        send(1)
        outbox.acknowledged(len(sent))
    everything = {(7, part) for part in range(1, 101)} | {(e, part) for e in (8, 9, 10) for part in range(1, 201)}
    assert set(sent) <= everything
    delivered = sent[unacknowledged:]  # what was under way at a reconnection and is gone counts as dropped
    assert len(set(delivered)) == len(delivered)
    assert len(delivered) + outbox.counters["dropped_backlog"] == len(everything)
    assert outbox.cursor is not None
    assert (outbox.cursor.id, outbox.backlog) == (len(everything), 0)
    outbox.close()


def write(part: int) -> Write:
    values = {"epoch": 7, "decision": "REJECT", "reason": "late", "wall_ns": 0, "boot_id": "boot", "times_ms": "{}"}
    values |= {"recovered": 0, "dry_run": 0, "part": part}
    return INSERT_OUTCOME, tuple(values.get(column) for column in OUTCOME_COLUMNS)


def test_a_batch_that_is_written_again_leaves_no_hole_in_the_ids(tmp_path: Path) -> None:
    """A hole would be counted as an outcome that was lost."""
    file = JournalFile(tmp_path / "journal.db", "boot", lambda _: None, KEEP)
    assert file.commit([write(1), write(2)])
    assert file.commit([write(1), write(2), write(3)])
    file.close()
    assert [row["id"] for row in journal_rows(tmp_path / "journal.db")] == [1, 2, 3]


def test_a_batch_that_went_into_a_removed_file_is_not_safe(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    file = JournalFile(path, "boot", lambda _: None, KEEP)
    assert file.commit([write(1)])

    def removed_meanwhile() -> Iterator[Write]:
        yield write(2)
        path.unlink()

    assert not file.commit(removed_meanwhile())
    assert file.failures == 1
    assert file.commit([write(2)])
    file.close()
    assert [row["part"] for row in journal_rows(path)] == [2]
