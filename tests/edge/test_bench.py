"""The bench: `beltline run` on a folder, as an integrator tries a bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray


def beltline(*arguments: str | Path, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-m", "edge.cli", *map(str, arguments)]
    return subprocess.run(
        command, env=os.environ | {"COLUMNS": "400"}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def station_file(tmp_path: Path, make_bundle: Callable[..., Path], make_parts: Callable[..., Path]) -> Path:
    make_bundle()
    folder = make_parts(128, 250, 120)
    (folder / "20dir.png").mkdir()
    (folder / "003.png").write_bytes((folder / "000.png").read_bytes()[:-20])
    file = tmp_path / "station.toml"
    file.write_text(
        '[bundle]\npath = "tiny.bundle"\nallow_unsigned = true\n[source]\nkind = "folder"\npath = "parts"\n'
    )
    return file


def test_each_picture_gets_one_verdict(station_file: Path) -> None:
    done = beltline("run", station_file, "--json")
    assert done.returncode == 0, done.stderr
    *parts, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert [part["decision"] for part in parts] == ["ACCEPT", "REJECT", "ACCEPT", "FAULT"]
    assert parts[3]["reason"] == "bad_frame"
    assert [part["picture"] for part in parts] == ["000.png", "001.png", "002.png", "003.png"]
    assert summary["counters"]["outcome REJECT score_above_threshold"] == 1
    assert summary["counters"]["trigger"] == 4
    assert "truncated PNG" in done.stderr
    assert "nothing is thrown off any belt" in done.stderr


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.full((64, 64, 3), 77, np.uint8), "blank frame"),
        (np.zeros((16, 16, 3), np.uint8), "16x16 pixels"),
        (np.zeros((64, 64), np.uint8), "1 channel"),
    ],
)
def test_the_log_names_the_picture_that_cannot_be_judged(
    station_file: Path, picture: NDArray[np.uint8], words: str
) -> None:
    assert cv2.imwrite(str(station_file.parent / "parts" / "odd.png"), picture)
    done = beltline("run", station_file, "--json")
    assert json.loads(done.stdout.splitlines()[4])["picture"] == "odd.png"
    [line] = [line for line in done.stderr.splitlines() if words in line]
    assert "bad_frame: odd.png: " in line


def test_people_get_a_table(station_file: Path) -> None:
    done = beltline("run", station_file)
    assert done.returncode == 0, done.stderr
    assert "REJECT" in done.stdout
    assert "001.png" in done.stdout
    assert "soft triggers" in done.stdout


def test_check_explains_without_running(station_file: Path) -> None:
    done = beltline("run", station_file, "--check", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {finding["what"]: finding["found"] for finding in json.loads(done.stdout)}
    assert findings["graph"].startswith("float")
    assert "1.00% false rejects" in findings["threshold"]
    assert "64 x 64" in findings["source"]
    assert findings["signature"] == "unsigned"


def test_check_names_what_is_wrong(station_file: Path) -> None:
    station_file.write_text(station_file.read_text().replace('"parts"', '"nowhere"'))
    done = beltline("run", station_file, "--check")
    assert done.returncode == 1
    assert "no such folder" in done.stdout
    assert "[source]" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_damaged_bundle_is_one_clear_line(station_file: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "tiny.bundle"
    damaged = bytearray(bundle.read_bytes())
    damaged[600] ^= 1
    bundle.write_bytes(damaged)
    done = beltline("run", station_file)
    assert done.returncode == 1
    assert "tiny.bundle" in done.stderr
    assert "Traceback" not in done.stderr


def test_outcomes_that_never_reached_the_disk_are_a_failure(station_file: Path) -> None:
    station_file.write_text(station_file.read_text() + '[paths]\njournal = "journal.db"\n')
    done = beltline("run", station_file, "--json", before=["prlimit", "--fsize=0"])  # a full disk, from first to last
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[4])["counters"]["trigger"] == 4
    assert "journal.db: 12 writes (triggers, verdicts, outcomes) are lost" in done.stderr
    assert "Traceback" not in done.stderr
