"""The trial of a new bundle: what counts as a fault, and that however a station ends, the next one sees it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.install import install
from edge.installed import InstalledError, State, archive, read_state
from edge.settings import Settings, load_settings
from edge.start import started
from edge.trial import TrialError, begin
from firmware_bridge.parts import Decision, PartId, Reason, Verdict

STATION = """
[bundle]
allow_unsigned = true
trial_parts = 5
[source]
kind = "folder"
path = "parts"
[reject]
kind = "link"
port = "nowhere/ttyACM0"
decision_distance_counts = 800
gate_distance_counts = 1000
gate_window_before_counts = 50
gate_window_after_counts = 100
min_part_spacing_counts = 200
[paths]
journal = "journal.db"
control = "control.sock"
bundles = "bundles"
engines = "engines"
"""


class Box:
    def __init__(self, folder: Path, make_bundle: Callable[..., Path]) -> None:
        self.make = make_bundle
        self.file = folder / "station.toml"
        self.file.write_text(STATION)

    @property
    def settings(self) -> Settings:
        return load_settings(self.file)

    def install(self, number: int, **options: Any) -> str:
        return install(self.settings, self.make(f"{number}.bundle", threshold=0.1 * number, **options)).bundle.id

    @property
    def state(self) -> State:
        state = read_state(self.settings.paths.bundles)
        assert state
        return state


@pytest.fixture
def box(
    tmp_path: Path, make_bundle: Callable[..., Path], make_parts: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Box:
    monkeypatch.setattr("edge.speed.MEASURE_NS", 0)
    make_parts(128, 250)
    return Box(tmp_path, make_bundle)


def verdict(reason: Reason) -> Verdict:
    kinds = {Reason.SCORE_BELOW_THRESHOLD: Decision.ACCEPT, Reason.SCORE_ABOVE_THRESHOLD: Decision.REJECT}
    return Verdict(PartId(1, 1), kinds.get(reason, Decision.FAULT), reason, None, 0.5, "r", {})


GOOD = verdict(Reason.SCORE_BELOW_THRESHOLD)


def test_without_an_install_or_a_trial_there_is_none(box: Box) -> None:
    with pytest.raises(InstalledError, match="nothing is installed"):
        begin(box.settings)
    first = box.install(1)
    assert begin(box.settings) == (archive(box.settings.paths.bundles, first), None)


def test_it_is_passed_after_so_many_parts_whatever_the_camera_lacks(box: Box) -> None:
    first, second = box.install(1), box.install(2)
    _, trial = begin(box.settings)
    assert trial
    with trial:
        for reason in (Reason.NO_FRAME, Reason.NO_FRAME, Reason.NO_FRAME, Reason.SCORE_ABOVE_THRESHOLD):
            trial.judged(verdict(reason), in_time=True)
        assert trial.progress == "1 parts to go"
        assert box.state.trial
        trial.judged(GOOD, in_time=True)
    assert (box.state.current, box.state.previous, box.state.trial) == (second, first, None)
    assert box.state.last
    assert (box.state.last.bundle, box.state.last.result) == (second, "passed")
    assert begin(box.settings)[1] is None


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([(Reason.BAD_SCORE, True)] * 3, "bad_score"),
        ([(Reason.SCORER_FAILED, True), (Reason.BAD_FRAME, True), (Reason.BAD_FRAME, True)], "bad_frame"),
        ([(Reason.SCORE_BELOW_THRESHOLD, True)] * 4 + [(Reason.SCORE_BELOW_THRESHOLD, False)] * 3, "late"),
        ([(Reason.NO_VERDICT, False)] * 3, "late"),
    ],
)
def test_three_parts_in_a_row_without_a_valid_score_in_time_bring_the_former_one_back(
    box: Box, parts: list[tuple[Reason, bool]], why: str
) -> None:
    first, second = box.install(1), box.install(2)
    _, trial = begin(box.settings)
    assert trial
    for reason, in_time in parts:
        assert not trial.failed
        trial.judged(verdict(reason), in_time=in_time)
    with pytest.raises(TrialError, match=rf"3 parts in a row .* last: {why}\. Bundle {first[:12]} is in place"), trial:
        pass
    state = box.state
    assert (state.current, state.previous, state.trial) == (first, None, None)
    assert state.last
    assert (state.last.bundle, state.last.result) == (second, "failed")


def test_two_in_a_row_are_forgiven(box: Box) -> None:
    box.install(1)
    second = box.install(2)
    _, trial = begin(box.settings)
    assert trial
    with trial:
        for reason in (Reason.BAD_SCORE, Reason.BAD_SCORE, Reason.SCORE_BELOW_THRESHOLD, Reason.BAD_SCORE):
            trial.judged(verdict(reason), in_time=True)
        trial.judged(verdict(Reason.BAD_SCORE), in_time=True)
        assert trial.progress == "0 parts to go"  # not passed on a fault
        trial.judged(GOOD, in_time=True)
    assert (box.state.current, box.state.trial) == (second, None)


def test_a_stopped_station_begins_anew_and_a_crashed_one_does_not(box: Box) -> None:
    first, second = box.install(1), box.install(2)
    with started(box.settings):
        assert box.state.trial
        assert box.state.trial.running
    assert box.state.trial
    assert not box.state.trial.running
    with pytest.raises(ZeroDivisionError), started(box.settings):
        raise ZeroDivisionError
    assert box.state.current == second
    with started(box.settings) as station:
        assert station.judge.scorer.bundle.id == first
    assert box.state.last
    assert "ended without notice" in box.state.last.why


def test_what_is_not_the_bundles_fault_does_not_count(box: Box) -> None:
    box.install(1)
    second = box.install(2)
    (box.file.parent / "parts").rename(box.file.parent / "elsewhere")
    for _ in range(2):
        with pytest.raises(Exception, match="parts"), started(box.settings):
            pass
    (box.file.parent / "elsewhere").rename(box.file.parent / "parts")
    with started(box.settings) as station:
        assert station.judge.scorer.bundle.id == second


@pytest.mark.parametrize("damage", ["flip", "remove", "sign"])
def test_one_that_cannot_be_opened_is_switched_back_within_the_start(box: Box, damage: str) -> None:
    first, second = box.install(1), box.install(2)
    file = archive(box.settings.paths.bundles, second)
    if damage == "flip":
        raw = bytearray(file.read_bytes())
        raw[9000] ^= 1
        file.write_bytes(raw)
    elif damage == "remove":
        file.unlink()
    else:
        box.file.write_text(STATION.replace("allow_unsigned = true", 'class_name = "lid"\nallow_unsigned = true'))
    if damage == "sign":  # now the former one has no such class either: both are refused, and the proven one stays
        with pytest.raises(Exception, match="no class 'lid'"), started(box.settings):
            pass
    else:
        with started(box.settings) as station:
            assert station.judge.scorer.bundle.id == first
    assert box.state.current == first
    assert box.state.last
    assert box.state.last.result == "failed"


def test_where_the_former_one_is_no_better_the_trial_goes_on(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    first, second = box.install(1), box.install(2)
    archive(box.settings.paths.bundles, first).write_bytes(b"rotten")
    with pytest.raises(ZeroDivisionError), started(box.settings):
        raise ZeroDivisionError
    with started(box.settings) as station:
        assert station.judge.scorer.bundle.id == second
    assert "goes on with it" in caplog.text
    archive(box.settings.paths.bundles, second).write_bytes(b"rotten")
    with pytest.raises(Exception, match="the former bundle cannot come back"), started(box.settings):
        pass


def test_an_install_during_the_trial_is_not_the_stations_business(box: Box) -> None:
    first = box.install(1)
    box.install(2)
    _, trial = begin(box.settings)
    assert trial
    third = box.install(3)
    trial.fault("made up")
    with pytest.raises(TrialError), trial:
        pass
    state = box.state
    assert (state.current, state.previous) == (third, first)
    assert state.trial
    assert not state.trial.running


def test_a_full_disk_keeps_no_station_from_starting(box: Box, monkeypatch: Any, caplog: Any) -> None:
    box.install(1)
    second = box.install(2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge.installed.write_file", full)
    with started(box.settings) as station:
        assert station.judge.scorer.bundle.id == second
    assert "the trial cannot be marked" in caplog.text


def run_spoiled(settings: Settings) -> None:
    """Run a station whose graph gives another map than the bundle expects, from then on."""
    with started(settings) as station:
        scorer = station.judge.scorer
        sample, tensor, class_index, expected_map = scorer._golden[0]
        scorer._golden[0] = (sample, tensor, class_index, expected_map + 9)
        station.run()


def test_a_failing_self_test_ends_the_station(box: Box) -> None:
    first = box.install(1)
    box.install(2)
    with pytest.raises(TrialError, match="self-test"):
        run_spoiled(box.settings)
    assert box.state.current == first


class Process:
    def __init__(self, file: Path) -> None:
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.place = file.with_name("notify")
        self.notify.bind(str(self.place))
        self.notify.settimeout(60)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge.cli", "run", str(file)],
            env=os.environ | {"NOTIFY_SOCKET": str(self.place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while self.notify.recv(4096).decode().strip() != "READY=1":
            pass

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        self.notify.close()
        self.place.unlink()
        return self.process.returncode, err


@pytest.fixture
def run(box: Box) -> Iterator[Callable[[], Process]]:
    started_ones: list[Process] = []

    def start() -> Process:
        running = Process(box.file)
        started_ones.append(running)
        return running

    yield start
    for running in started_ones:
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate()
        running.notify.close()


def test_a_station_that_is_told_to_end_while_it_starts_has_not_crashed(box: Box) -> None:
    box.install(1)
    second = box.install(2)
    process = subprocess.Popen([sys.executable, "-m", "edge.cli", "run", str(box.file)], stderr=subprocess.DEVNULL)
    while not (box.state.trial and box.state.trial.running):
        assert process.poll() is None
        time.sleep(0.002)
    process.terminate()
    assert process.wait(60) == 0
    state = box.state
    assert state.trial
    assert (state.current, state.trial.running) == (second, False)


def test_a_killed_station_is_seen_by_the_next_start(box: Box, run: Callable[[], Process]) -> None:
    first, second = box.install(1), box.install(2)
    assert run().end(signal.SIGTERM)[0] == 0
    assert box.state.current == second
    running = run()
    status = subprocess.run(
        [sys.executable, "-m", "edge.cli", "status", str(box.file), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(status.stdout)
    assert (told["bundle"], told["signature"], told["trial"]) == (second, "unsigned", "5 parts to go")
    running.end(signal.SIGKILL)
    assert box.state.current == second
    code, err = run().end(signal.SIGTERM)
    assert code == 0
    assert f"bundle {second[:12]} failed its trial: the station ended without notice" in err
    assert "the bundle is unsigned" in err
    assert box.state.current == first
