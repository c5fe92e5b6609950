"""`run --check` says no where `run` or `publish` would."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from edge.bundle import Threshold
from edge.check import check_station, promise
from edge.settings import SettingsError, load_settings

LINK = """
[reject]
kind = "link"
port = "/dev/ttyACM77"
decision_distance_counts = 800
gate_distance_counts = 1000
gate_window_before_counts = 50
gate_window_after_counts = 100
min_part_spacing_counts = 200
"""
PATHS = '[paths]\njournal = "journal.db"\ncontrol = "control.sock"\n'
FOLDER = '[source]\nkind = "folder"\npath = "parts"\n'
CAMERA = '[source]\nkind = "camera"\ndevice = "{}"\nwindow_ms = 50\n'


@pytest.fixture
def problems(tmp_path: Path, make_bundle: Callable[..., Path], make_parts: Callable[..., Path]) -> Callable[..., dict]:
    make_bundle()
    make_parts(128, 250)

    def problems(bundle: str = "", source: str = FOLDER, rest: str = PATHS) -> dict[str, str]:
        file = tmp_path / "station.toml"
        file.write_text(f'[bundle]\npath = "tiny.bundle"\nallow_unsigned = true\n{bundle}\n{source}\n{rest}')
        return {finding.what: finding.found for finding in check_station(load_settings(file)) if not finding.ok}

    return problems


def test_a_good_file_has_no_problem(problems: Callable[..., dict]) -> None:
    assert problems() == {}


def test_a_threshold_that_turns_the_golden_verdicts_over(
    problems: Callable[..., dict], make_bundle: Callable[..., Path]
) -> None:
    """The golden sample is a good part that scores about 0.03; a bundle with a threshold below calls it a defect."""
    assert "rejects every good golden part" in problems("threshold = 0.001")["threshold"]
    assert problems("threshold = 0.9") == {}
    make_bundle(threshold=0.001)
    assert "accepts every golden defect" in problems("threshold = 1e8")["threshold"]
    assert problems("threshold = 0.002") == {}


@pytest.mark.parametrize("rule", ["rank 9 of 9", "rank 9 of 9; cross-fitted, approximate"])
def test_that_a_threshold_is_approximate_is_said_once(rule: str) -> None:
    threshold = Threshold(
        value=0.5, target_false_reject=0.1, rule=rule, parts=9, interval=(0.0, 0.3), approximate=True, flagged="look"
    )
    words = promise(threshold)
    assert words.count("approximate") == 1
    assert words.endswith("approximate. look.")


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE photos (name TEXT)")


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_bytes(b"thesis"), foreign])
def test_a_journal_that_is_none(problems: Callable[..., dict], tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "journal.db")
    assert "journal.db: " in problems()["journal"]


@pytest.mark.parametrize(
    ("what", "more", "says"),
    [
        ("control", {"rest": f'[paths]\njournal = "journal.db"\ncontrol = "{"c" * 120}.sock"\n'}, "107 bytes"),
        ("mqtt", {"rest": PATHS + '[mqtt]\nusername = "u"\npassword_file = "none"\n'}, "none: not there"),
        ("mqtt", {"rest": PATHS + '[mqtt]\ntls = true\nca_file = "parts"\n'}, "parts: not there or not readable"),
        ("reject path", {"rest": PATHS + LINK}, "not there"),
        ("reject path", {"rest": PATHS + LINK.replace("/dev/ttyACM77", "/tmp")}, "no serial port"),
        ("reject path", {"rest": PATHS + LINK.replace("/dev/ttyACM77", "/dev/null")}, "no serial port"),
        ("source", {"source": CAMERA.format("/dev/video77"), "rest": PATHS + LINK}, "No such file"),
        ("source", {"source": CAMERA.format("/dev/null"), "rest": PATHS + LINK}, "no V4L2 camera"),
    ],
)
def test_what_a_start_would_stumble_over(
    problems: Callable[..., dict], what: str, more: dict[str, str], says: str
) -> None:
    assert says in problems(**more)[what]


@pytest.mark.parametrize("host", ["mqtt://localhost", "a b", ""])
def test_a_host_that_cannot_be(problems: Callable[..., dict], host: str) -> None:
    with pytest.raises(SettingsError, match=r"\[mqtt\] host"):
        problems(rest=PATHS + f'[mqtt]\nhost = "{host}"\n')


def test_journal_and_control_apart(problems: Callable[..., dict]) -> None:
    with pytest.raises(SettingsError, match="are the same file"):
        problems(rest='[paths]\njournal = "same"\ncontrol = "same"\n')
