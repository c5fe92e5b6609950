"""The outbox over a real broker: in order, at least once, whatever is killed."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.commands.publish import publish
from edge.cursor import Cursor, read_cursor, write_cursor
from edge.errors import BeltlineError
from edge.journal import Journal
from edge.outbox import Outbox
from edge.publish import Publisher, cursor_of, lock, publisher
from edge.watchdog import Watchdog
from firmware_bridge.mqtt.messages import VerdictMessage
from firmware_bridge.mqtt.settings import MqttSettings
from firmware_bridge.parts import Decision, Outcome, PartId, Reason, Trigger, Verdict

EPOCH = 7


def write(journal: Journal, parts: range) -> None:
    for part in parts:
        part_id = PartId(EPOCH, part)
        journal.trigger(Trigger(part_id, 100 * part, 100 * part + 50, 0, time.monotonic_ns()))
        journal.verdict(
            Verdict(part_id, Decision.ACCEPT, Reason.SCORE_BELOW_THRESHOLD, 0.25, 0.5, "default", {"total": 12.5}), 99
        )
        journal.outcome(Outcome(part_id, Decision.ACCEPT, Reason.SCORE_BELOW_THRESHOLD, 100 * part + 60))
    assert journal.flush(10)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.db")
    opened.open()
    yield opened
    opened.close()


def make(port: int, journal: Path, **more: Any) -> Publisher:
    return publisher(MqttSettings(host="127.0.0.1", port=port, backlog_rows=1000), "s", "l", "a", journal, **more)


def wait_for(found: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def step_until(running: Publisher, found: Callable[[], object], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not found():
        running.step(0.01)
        assert time.monotonic() < deadline, running.summary()


def done(running: Publisher, count: int) -> Callable[[], bool]:
    return lambda: running.health().counters["acknowledged"] >= count and running.health().backlog == 0


def parts_seen(watcher: Any, last: int, timeout_s: float = 15) -> list[int]:
    """Parts in the order of their first sighting, until `last` has come."""
    seen: dict[int, None] = {}
    while last not in seen:
        seen[watcher.take("/verdict", timeout_s)["part"]] = None
    return list(seen)


@pytest.fixture
def station(tmp_path: Path) -> Callable[[int], Path]:
    def make_file(port: int) -> Path:
        file = tmp_path / "station.toml"
        file.write_text(
            f'[bundle]\npath = "a.bundle"\n[source]\nkind = "folder"\npath = "."\n'
            f'[station]\nsite = "s"\nline = "l"\nname = "a"\n[paths]\njournal = "journal.db"\n'
            f'[mqtt]\nhost = "127.0.0.1"\nport = {port}\nin_flight = 8\n'
        )
        return file

    return make_file


def start(file: Path) -> subprocess.Popen[bytes]:
    code = "import sys; from edge.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen([sys.executable, "-c", code, "publish", str(file)], stderr=subprocess.PIPE)


def test_a_verdict_says_everything_about_its_part(mosquitto: Any, subscribe: Any, journal: Journal) -> None:
    port = mosquitto().port
    watcher = subscribe(port, "beltline/s/l/a/#")
    write(journal, range(1, 2))
    with make(port, journal.path) as running:
        step_until(running, done(running, 1))
        message = watcher.take("/verdict")
    VerdictMessage.model_validate({**message, "decision": Decision(message["decision"])})
    assert message["schema"] == 1
    assert message["id"] == "00000007-1"
    assert (message["epoch"], message["part"], message["decision"]) == (EPOCH, 1, "ACCEPT")
    assert (message["asked"], message["asked_reason"]) == ("ACCEPT", "score_below_threshold")
    assert (message["score"], message["threshold"], message["recipe"]) == (0.25, 0.5, "default")
    assert (message["trigger_count"], message["outcome_count"], message["input_crc32"]) == (100, 160, 99)
    assert message["times_ms"] == {"total": 12.5}
    assert message["time"].endswith("+00:00")


def test_a_new_row_arrives_promptly(mosquitto: Any, subscribe: Any, journal: Journal) -> None:
    port = mosquitto().port
    watcher = subscribe(port, "beltline/s/l/a/verdict")
    with make(port, journal.path) as running:
        step_until(running, lambda: running.broker.session)
        for part in range(1, 6):
            write(journal, range(part, part + 1))
            step_until(running, done(running, part), timeout_s=2)
    assert parts_seen(watcher, 5) == [1, 2, 3, 4, 5]


def test_waits_for_a_journal_that_does_not_exist_yet(mosquitto: Any, tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    with make(mosquitto().port, file) as running:
        step_until(running, lambda: running.broker.session)
        assert "does not exist yet" in running.summary()
        journal = Journal(file)
        journal.open()
        write(journal, range(1, 4))
        step_until(running, done(running, 3))
        journal.close()


def test_a_journal_whose_station_stopped_and_came_back(mosquitto: Any, subscribe: Any, tmp_path: Path) -> None:
    port = mosquitto().port
    watcher = subscribe(port, "beltline/s/l/a/verdict")
    file = tmp_path / "journal.db"
    first = Journal(file)
    first.open()
    write(first, range(1, 4))
    first.close()  # takes the write-ahead log and its shared memory away
    with make(port, file) as running:
        step_until(running, done(running, 3))
        second = Journal(file)
        second.open()
        write(second, range(4, 7))
        step_until(running, done(running, 6))
        second.close()
        assert "journal_failures" not in running.health().counters
    assert parts_seen(watcher, 6) == [1, 2, 3, 4, 5, 6]


def test_the_working_loop_feeds_the_watchdog(mosquitto: Any, journal: Journal, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(2)
        rounds = iter(range(150))
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        with make(mosquitto().port, journal.path) as running:
            running.run(Watchdog(environment), lambda: next(rounds, None) is None)
        heard = []
        while len(heard) < 10 and not any(line.startswith(b"STATUS=connected; 0 to send") for line in heard):
            heard.append(manager.recv(500))
    assert heard[0] == b"READY=1"
    assert b"WATCHDOG=1" in heard


def test_nothing_is_lost_or_swapped_when_the_broker_dies_mid_stream(
    mosquitto: Any, subscribe: Any, journal: Journal
) -> None:
    broker = mosquitto()
    watcher = subscribe(broker.port, "beltline/s/l/a/verdict")
    write(journal, range(1, 301))
    with make(broker.port, journal.path) as running:
        step_until(running, lambda: running.health().counters["acknowledged"] >= 100)
        assert running.health().backlog > 0
        # What a broker acknowledged and has not yet delivered dies with it; what it delivered must not come to harm.
        wait_for(lambda: watcher.messages.qsize() >= running.health().counters["acknowledged"])
        watcher.forget()
        broker.kill()
        write(journal, range(301, 401))
        step_until(running, lambda: running.broker.session is None)
        broker.start()
        watcher.wait_subscribed()
        write(journal, range(401, 411))
        step_until(running, done(running, 410))
        assert running.health().dropped == 0
    assert parts_seen(watcher, 410) == list(range(1, 411))


def test_a_publisher_that_is_killed_again_and_again_loses_nothing(
    mosquitto: Any, subscribe: Any, journal: Journal, station: Callable[[int], Path]
) -> None:
    port = mosquitto().port
    watcher = subscribe(port, "beltline/s/l/a/#")
    file = station(port)
    write(journal, range(1, 901))
    parts: list[int] = []
    births = wills = 0

    def watch(until: Callable[[], bool]) -> None:
        nonlocal births, wills
        while not until():
            topic, payload, _ = watcher.messages.get(timeout=15)
            message = json.loads(payload)
            if topic.endswith("/verdict"):
                parts.append(message["part"])
            elif topic.endswith("/state"):
                births += message["online"]
                wills += not message["online"] and message["time"] is None

    for kills, last in enumerate((3, 150, 400), 1):  # at the start, and in the middle of the stream
        process = start(file)
        watch(lambda last=last: last in parts)  # type: ignore[misc]
        process.kill()
        process.communicate()
        watch(lambda kills=kills: wills == kills)  # type: ignore[misc]
    born = births
    process = start(file)
    try:
        watch(lambda: 900 in parts and births > born)
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert list(dict.fromkeys(parts)) == list(range(1, 901))  # first sightings: none missing, in order
    assert read_cursor(cursor_of(journal.path)) == Cursor(identity(journal.path), 900)


def identity(journal: Path) -> str:
    with closing(sqlite3.connect(journal)) as database:
        return str(database.execute("SELECT identity FROM journal").fetchone()[0])


def test_a_restart_repeats_nothing_that_was_acknowledged(mosquitto: Any, subscribe: Any, journal: Journal) -> None:
    port = mosquitto().port
    watcher = subscribe(port, "beltline/s/l/a/verdict")
    write(journal, range(1, 11))
    with make(port, journal.path) as running:
        step_until(running, done(running, 10))
    write(journal, range(11, 13))
    with make(port, journal.path) as running:
        step_until(running, done(running, 2))
    assert [watcher.take("/verdict")["part"] for _ in range(12)] == list(range(1, 13))


def test_state_birth_change_and_goodbye_are_retained(mosquitto: Any, subscribe: Any, journal: Journal) -> None:
    port = mosquitto().port
    view: dict[str, object] = {"state": "ContinuousExecution", "fault": None, "recipe": "tea", "path": {"ready": True}}
    with make(port, journal.path, look=lambda: dict(view)) as running:
        step_until(running, lambda: running.health().counters["broker_connects"])
        running.step()
        late = subscribe(port, "beltline/s/l/a/#")
        birth = late.take("/state")
        assert (birth["online"], birth["station"], birth["recipe"]) == (True, "ContinuousExecution", "tea")
        assert running.health().station["path.ready"] is True
        view.update(state="Error", fault="encoder lost")
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            running.step()
        assert late.until(lambda m: m["fault"], "/fault")["fault"] == "encoder lost"
    assert late.until(lambda m: not m["online"], "/state")["time"] is not None
    assert not subscribe(port, "beltline/s/l/a/state").take("/state")["online"]


def test_hostile_commands_are_counted_and_the_health_command_is_answered(
    mosquitto: Any, subscribe: Any, journal: Journal
) -> None:
    port = mosquitto().port
    watcher = subscribe(port, "beltline/s/l/a/#")
    hostile = [
        *(b"", b"\xff\xfe", b"{", b"[]", b"null", b'"x"', b"1e999", b"[" * 3000, b"x" * 100_000),
        *(b'{"schema": 2, "id": "a"}', b'{"schema": 1}', b'{"schema": 1, "id": "a", "more": 1}'),
    ]
    with make(port, journal.path) as running:
        step_until(running, lambda: running.broker.session)
        for _ in range(10):
            running.step()
        for payload in hostile:
            watcher.publish("beltline/s/l/a/cmd/health", payload)
            running.step()
        watcher.publish("beltline/s/l/a/cmd/rm", b'{"schema": 1, "id": "b"}')
        step_until(running, lambda: running.health().counters["commands_refused"] == len(hostile) + 1)
        assert watcher.until(lambda m: m["id"] == "b", "/reply")["ok"] is False
        watcher.publish("beltline/s/l/a/cmd/health", b'{"schema": 1, "id": "c"}')
        step_until(running, lambda: running.health().counters["commands"] == 1)
        assert watcher.take("/reply") == {"schema": 1, "id": "c", "ok": True, "error": ""}
        assert watcher.take("/health")["counters"]["commands"] == 1
        assert running.health().counters["broker_connects"] == 1


def test_what_falls_off_the_bound_is_counted_for_good(mosquitto: Any, subscribe: Any, journal: Journal) -> None:
    write(journal, range(1, 1301))
    port = mosquitto().port
    watcher = subscribe(port, "beltline/s/l/a/verdict")
    with make(port, journal.path) as running:
        step_until(running, done(running, 1000))
        assert running.health().dropped == 300
    assert parts_seen(watcher, 1300) == list(range(301, 1301))
    with make(port, journal.path) as running:
        step_until(running, lambda: running.broker.session)
        assert running.health().dropped == 300


def test_rows_removed_before_they_were_sent_are_counted(journal: Journal, tmp_path: Path) -> None:
    write(journal, range(1, 21))
    with closing(sqlite3.connect(journal.path)) as database, database:
        database.execute("DELETE FROM outcome WHERE id <= 15")
    outbox = Outbox(journal.path, tmp_path / "cursor", 1000)
    row = outbox.next_row()
    assert row is not None
    assert row["part"] == 16
    assert outbox.cursor is not None
    assert outbox.cursor.dropped == 15
    outbox.close()


def test_a_damaged_row_is_skipped_and_counted_and_the_next_one_goes(
    mosquitto: Any, subscribe: Any, journal: Journal
) -> None:
    write(journal, range(1, 7))
    with closing(sqlite3.connect(journal.path)) as database, database:
        database.execute("UPDATE outcome SET times_ms = 'x' WHERE id = 1")
        database.execute("UPDATE outcome SET decision = 'MAYBE' WHERE id = 3")
        database.execute("UPDATE outcome SET wall_ns = 9e300 WHERE id = 4")
        database.execute("UPDATE outcome SET recipe = CAST(x'ff00fe' AS TEXT) WHERE id = 5")
    port = mosquitto().port
    watcher = subscribe(port, "beltline/s/l/a/verdict")
    with make(port, journal.path) as running:
        step_until(running, done(running, 3))
        assert running.health().dropped == 3
    assert parts_seen(watcher, 6) == [2, 5, 6]


def test_a_replaced_journal_is_published_from_its_first_row(mosquitto: Any, subscribe: Any, tmp_path: Path) -> None:
    port = mosquitto().port
    watcher = subscribe(port, "beltline/s/l/a/verdict")
    file = tmp_path / "journal.db"
    journal = Journal(file)
    journal.open()
    write(journal, range(1, 31))
    with make(port, file) as running:
        step_until(running, done(running, 30))
        journal.close()
        for old in tmp_path.glob("journal.db*"):
            if "published" not in old.name:
                old.unlink()
        journal = Journal(file)
        journal.open()
        write(journal, range(31, 34))
        step_until(running, done(running, 33))
        assert running.health().counters["journal_replaced"] == 1
        journal.close()
    assert parts_seen(watcher, 33) == list(range(1, 34))


def test_a_broker_that_refuses_verdicts_does_not_count_as_delivered(
    mosquitto: Any, tmp_path: Path, journal: Journal
) -> None:
    rights = tmp_path / "rights"
    rights.write_text("topic read #\ntopic write beltline/s/l/a/state\n")
    rights.chmod(0o600)
    write(journal, range(1, 4))
    port = mosquitto("allow_anonymous true", f"acl_file {rights}").port
    with make(port, journal.path) as running:
        step_until(running, lambda: running.health().counters.get("broker_refused", 0) >= 2)
        assert running.health().backlog == 3
        assert "refuses a message: Not authorized" in running.health().last_problem


def test_a_second_publisher_of_the_same_journal_is_refused(tmp_path: Path) -> None:
    held = lock(cursor_of(tmp_path / "journal.db"))
    with pytest.raises(BeltlineError, match="another `beltline publish`"):
        lock(cursor_of(tmp_path / "journal.db"))
    held.close()
    lock(cursor_of(tmp_path / "journal.db")).close()


def test_a_station_without_mqtt_is_told_what_to_add(tmp_path: Path) -> None:
    file = tmp_path / "station.toml"
    file.write_text('[bundle]\npath = "a.bundle"\n[source]\nkind = "folder"\npath = "."\n')
    with pytest.raises(BeltlineError, match=r"no \[mqtt\] table"):
        publish(file)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BeltlineError, match="nowhere"):
        lock(cursor_of(tmp_path / "nowhere" / "journal.db"))


cursors = st.builds(
    Cursor, st.text(alphabet="0123456789abcdef", max_size=32), st.integers(0, 2**63), st.integers(0, 2**63)
)


@given(cursors)
def test_a_cursor_reads_back(tmp_path_factory: pytest.TempPathFactory, cursor: Cursor) -> None:
    file = tmp_path_factory.mktemp("cursor") / "cursor"
    write_cursor(file, cursor)
    assert read_cursor(file) == cursor


@given(cursors, st.data())
def test_a_changed_cursor_is_refused_or_the_same(
    tmp_path_factory: pytest.TempPathFactory, cursor: Cursor, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("cursor") / "cursor"
    write_cursor(file, cursor)
    raw = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    file.write_bytes(bytes(raw))
    try:
        assert read_cursor(file) == cursor
    except ValueError as refusal:
        assert str(file) in str(refusal)  # noqa: PT017 - either is right


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_bytes_are_refused_by_name(tmp_path_factory: pytest.TempPathFactory, raw: bytes | str) -> None:
    file = tmp_path_factory.mktemp("cursor") / "cursor"
    file.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(ValueError, match="cursor"):
        read_cursor(file)


def test_a_damaged_cursor_repeats_everything_and_says_so(journal: Journal) -> None:
    write(journal, range(1, 6))
    file = cursor_of(journal.path)
    write_cursor(file, Cursor(identity(journal.path), 4))
    file.write_bytes(file.read_bytes()[:-3])
    outbox = Outbox(journal.path, file, 1000)
    row = outbox.next_row()
    assert row is not None
    assert row["id"] == 1
    assert outbox.counters["cursor_unreadable"] == 1
    outbox.close()
