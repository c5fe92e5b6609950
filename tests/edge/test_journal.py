"""The journal on real files: order, idempotence, kill -9, and disks that fail."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.journal import Journal
from firmware_bridge.parts import Decision, Outcome, PartId, Reason, Trigger, Verdict


def trigger(part: int, epoch: int = 7) -> Trigger:
    return Trigger(PartId(epoch, part), 1000 + part, 2000 + part, 5, time.monotonic_ns())


def verdict(part: int, epoch: int = 7) -> Verdict:
    return Verdict(PartId(epoch, part), Decision.ACCEPT, Reason.SCORE_BELOW_THRESHOLD, 0.25, 0.5, "r", {"graph": 1.5})


def outcome(part: int, epoch: int = 7, reason: Reason = Reason.SCORE_BELOW_THRESHOLD, **more: Any) -> Outcome:
    decision = Decision.ACCEPT if reason is Reason.SCORE_BELOW_THRESHOLD else Decision.FAULT
    return Outcome(PartId(epoch, part), decision, reason, 3000 + part, **more)


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[Journal]:
    journal = Journal(path, **options)
    journal.open()
    try:
        yield journal
    finally:
        journal.close()


def rows(path: Path, table: str = "outcome") -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(f"SELECT * FROM {table} ORDER BY 1")]


def test_an_outcome_carries_its_trigger_and_verdict(tmp_path: Path) -> None:
    with opened(tmp_path / "j.db") as journal:
        at = trigger(1)
        assert journal.trigger(at)
        assert journal.verdict(verdict(1), 0xCAFE)
        assert journal.unresolved(7) == [1]
        assert journal.outcome(outcome(1))
        assert journal.unresolved(7) == []
        assert journal.settled(PartId(7, 1))
    (row,) = rows(tmp_path / "j.db")
    assert (row["epoch"], row["part"], row["decision"], row["verdict_decision"]) == (7, 1, "ACCEPT", "ACCEPT")
    assert (row["trigger_count"], row["outcome_count"], row["trigger_ns"]) == (1001, 3001, at.at_ns)
    assert (row["score"], row["threshold"], row["recipe"], row["input_crc32"]) == (0.25, 0.5, "r", 0xCAFE)
    assert json.loads(row["times_ms"]) == {"graph": 1.5}
    assert (row["recovered"], row["dry_run"]) == (0, 0)
    assert abs(row["wall_ns"] - time.time_ns()) < 60e9
    assert rows(tmp_path / "j.db", "trigger") == []
    assert len(rows(tmp_path / "j.db", "journal")) == 1


def test_the_first_outcome_wins_and_repetitions_change_nothing(tmp_path: Path) -> None:
    for _ in range(2):  # the second time with what the file remembers
        with opened(tmp_path / "j.db") as journal:
            news = [
                journal.trigger(trigger(1)),
                journal.outcome(outcome(1)),
                journal.outcome(outcome(1, reason=Reason.LATE)),
            ]
            assert not journal.trigger(trigger(1))
            assert not journal.verdict(verdict(1))
            assert not journal.lost(PartId(7, 1))
        assert news in ([True, True, False], [False, False, False])
    (row,) = rows(tmp_path / "j.db")
    assert row["reason"] == "score_below_threshold"


def test_a_commit_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut cannot be had here: asked of the journal's own connection, of the first and of one after trouble."""
    connect, connections = sqlite3.connect, []

    def remembered(*where: Any, **how: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*where, **how)
        connections.append(connection)
        return connection

    monkeypatch.setattr("edge.journal_file.sqlite3.connect", remembered)
    path = tmp_path / "j.db"
    with opened(path) as journal:
        for part, expected in ((1, 1), (2, 2)):
            journal.outcome(outcome(part))
            assert journal.flush(10)
            assert len(connections) == expected
            (level,), (mode,) = (
                connections[-1].execute(f"PRAGMA {name}").fetchone() for name in ("synchronous", "journal_mode")
            )
            assert (level, mode) == (2, "wal"), "2 is FULL: each commit is on the disk before it counts"
            path.unlink()


def test_a_restart_knows_the_past_and_keeps_the_verdict(tmp_path: Path) -> None:
    with opened(tmp_path / "j.db") as journal:
        for part in (1, 2, 5):
            journal.trigger(trigger(part))
        journal.verdict(verdict(2))
        journal.outcome(outcome(1))
    with opened(tmp_path / "j.db") as journal:
        assert journal.knows_epoch(7)
        assert not journal.knows_epoch(8)
        assert journal.last_part(7) == 5
        assert journal.last_part(8) == 0
        assert journal.unresolved(7) == [2, 5]
        assert journal.outcome(outcome(2, recovered=True))
        assert journal.outcome(outcome(3, recovered=True)), "a gap that the controller remembers"
        assert journal.lost(PartId(7, 4)), "a gap that nobody remembers"
        assert journal.settle_other_epochs(8) == [PartId(7, 5)]
        assert journal.settle_other_epochs(8) == []
    by_part = {row["part"]: row for row in rows(tmp_path / "j.db")}
    assert by_part[2]["score"] == 0.25
    assert by_part[2]["recovered"] == 1
    assert by_part[3]["trigger_count"] is None
    for lost in (4, 5):
        assert (by_part[lost]["decision"], by_part[lost]["reason"]) == ("FAULT", "outcome_unknown")
        assert by_part[lost]["outcome_count"] is None
    assert [row["part"] for row in rows(tmp_path / "j.db")] == [1, 2, 3, 4, 5]


def test_a_restart_knows_every_epoch(tmp_path: Path) -> None:
    with opened(tmp_path / "j.db") as journal:
        for epoch, part in ((5, 3), (5, 9), (2**32 - 1, 4), (0, 1), (7, 2)):
            journal.outcome(outcome(part, epoch))
        journal.trigger(trigger(11, 5))
        journal.trigger(trigger(1, 99))
    with opened(tmp_path / "j.db") as journal:
        found = {epoch: journal.last_part(epoch) for epoch in (5, 2**32 - 1, 0, 7, 99, 8)}
        assert found == {5: 11, 2**32 - 1: 4, 0: 1, 7: 2, 99: 1, 8: 0}
        assert journal.knows_epoch(0)


WRITER = """
import sys, time
from pathlib import Path
from edge.journal import Journal
from firmware_bridge.parts import *
journal = Journal(Path(sys.argv[1])); journal.open()
for part in range(1, 1_000_000):
    part_id = PartId(7, part)
    journal.trigger(Trigger(part_id, part, part, 0, time.monotonic_ns()))
    journal.outcome(Outcome(part_id, Decision.REJECT, Reason.SCORE_ABOVE_THRESHOLD, part))
    if part % 20 == 0:
        assert journal.flush(10)
        print(part, flush=True)
"""


@pytest.mark.parametrize("after_s", [0.05, 0.3])
def test_kill_9_loses_nothing_that_was_committed(tmp_path: Path, after_s: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "j.db")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    process.stdout.readline()
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    said = process.stdout.read().split()
    process.stdout.close()
    process.wait()
    committed = int(said[-1]) if said else 20
    with opened(tmp_path / "j.db") as journal:
        assert journal.last_part(7) >= committed
        assert journal.outcome(outcome(2_000_000))
    parts = [row["part"] for row in rows(tmp_path / "j.db")]
    assert parts[:committed] == list(range(1, committed + 1))
    assert parts == sorted(set(parts))


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """A full disk, as far as this process can tell: writes beyond the limit fail with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_full_disk_is_outlived_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    with opened(path) as journal:
        journal.outcome(outcome(1))
        assert journal.flush(5)
        with file_size_limit(4096):
            for part in range(2, 202):
                journal.trigger(trigger(part))
                journal.outcome(outcome(part))
            wait_until(lambda: journal.failing)
            assert not journal.flush(0.2)
            assert journal.counters()["waiting_writes"] == 400
        assert journal.flush(10)
        assert journal.counters()["disk_failures"] >= 1
        assert "dropped_writes" not in journal.counters()
    assert [row["part"] for row in rows(path)] == list(range(1, 202))


def test_what_the_bound_drops_is_counted_and_the_newest_stay(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "j.db"
    with opened(path, bound=10) as journal:
        assert journal.failing
        for part in range(1, 16):
            journal.outcome(outcome(part))
        path.parent.mkdir()
        assert journal.flush(10)
        assert journal.counters()["dropped_writes"] == 5
    assert [row["part"] for row in rows(path)] == list(range(6, 16))


def test_a_removed_file_is_noticed_and_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    with opened(path) as journal:
        journal.outcome(outcome(1))
        assert journal.flush(5)
        (identity,) = rows(path, "journal")
        for suffix in ("", "-wal", "-shm"):
            (tmp_path / f"j.db{suffix}").unlink()
        journal.outcome(outcome(2))
        assert journal.flush(10)
        assert journal.counters()["disk_failures"] == 1
    assert [row["part"] for row in rows(path)] == [2]
    assert rows(path, "journal") != [identity], "a reader with a cursor must see that this is another file"


def test_a_damaged_file_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    path.write_bytes(b"this is no database" * 500)
    with opened(path) as journal:
        journal.outcome(outcome(1))
        assert journal.flush(10)
    assert len(rows(path)) == 1
    (kept,) = tmp_path.glob("j.db.damaged-*")
    assert kept.read_bytes().startswith(b"this is no database")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only files")
def test_a_read_only_file_is_outlived(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    with opened(path):
        pass
    path.chmod(0o400)
    with opened(path) as journal:
        journal.outcome(outcome(1))
        assert not journal.flush(0.3)
        path.chmod(0o600)
        assert journal.flush(10)
    assert len(rows(path)) == 1


def test_telling_the_journal_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    with opened(tmp_path / "j.db") as journal, closing(sqlite3.connect(tmp_path / "j.db")) as other:
        other.execute("BEGIN IMMEDIATE")  # the journal's thread now waits for this lock
        slowest = 0.0
        for part in range(1, 201):
            start = time.monotonic()
            journal.trigger(trigger(part))
            journal.verdict(verdict(part))
            journal.outcome(outcome(part))
            slowest = max(slowest, time.monotonic() - start)
        assert not journal.flush(0.1)
        assert slowest < 1.0  # the lock is held throughout: whoever waited for it would never come back
        other.rollback()
        assert journal.flush(10)
    assert len(rows(tmp_path / "j.db")) == 200


STEPS = st.lists(
    st.tuples(st.sampled_from(["trigger", "verdict", "outcome", "late", "lost", "restart"]), st.integers(1, 6)),
    max_size=40,
)


@settings(max_examples=30, deadline=None)
@given(STEPS)
def test_any_order_of_events_gives_one_row_per_part(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j.db"
    journal = Journal(path)
    journal.open()
    expected: dict[int, str] = {}
    waiting: set[int] = set()
    for step, part in steps:
        if step == "restart":
            journal.close()
            journal = Journal(path)
            journal.open()
        elif step == "trigger":
            assert journal.trigger(trigger(part)) == (part not in expected and part not in waiting)
            waiting |= {part} - set(expected)
        elif step == "verdict":
            assert journal.verdict(verdict(part)) == (part in waiting)
        else:
            reason = {
                "outcome": Reason.SCORE_BELOW_THRESHOLD,
                "late": Reason.LATE,
                "lost": Reason.OUTCOME_UNKNOWN,
            }[step]
            new = journal.lost(PartId(7, part)) if step == "lost" else journal.outcome(outcome(part, reason=reason))
            assert new == (part not in expected)
            expected.setdefault(part, reason.value)
            waiting.discard(part)
        assert journal.unresolved(7) == sorted(waiting)
    journal.close()
    assert [(row["part"], row["reason"]) for row in rows(path)] == list(expected.items())
    assert {row["part"] for row in rows(path, "trigger")} == waiting
