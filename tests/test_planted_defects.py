"""Defects that this kind of product is known for, planted one by one in a copy: each must turn its tests red."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("edge", "compile", "calibration", "firmware_bridge", "systemd", "tests", "pyproject.toml")
LINE = ("tests/line/test_faults.py", "-k")
pytestmark = pytest.mark.slow


class Defect(NamedTuple):
    file: str
    old: str
    new: str
    tests: list[str]  # that must notice: arguments of pytest


DEFECTS = {
    "BGR instead of RGB": Defect(
        "edge/picture.py", "cv2.cvtColor(image, order)", "image[..., :3].copy()", ["tests/edge/test_front_end.py"]
    ),
    "another resize": Defect(
        "edge/front_end.py", "else cv2.INTER_AREA", "else cv2.INTER_NEAREST", ["tests/edge/test_front_end.py"]
    ),
    "inverted decision": Defect(
        "edge/judge.py",
        "accept = score.value <= self.threshold",
        "accept = score.value > self.threshold",
        ["tests/edge/test_station.py"],
    ),
    "the next part's frame": Defect(
        "edge/sources/belt.py",
        "Exposure(PartId(epoch, part), captured_ns",
        "Exposure(PartId(epoch, part - 1), captured_ns",
        [*LINE, "undisturbed"],
    ),
    "off by one part": Defect(
        "firmware_bridge/link/session.py",
        "wire.decision_payload(part_id.part, ",
        "wire.decision_payload(part_id.part + 1, ",
        [*LINE, "undisturbed"],
    ),
    "stale epoch": Defect(
        "firmware_bridge/link/session.py",
        "or part_id.epoch != self.ledger.epoch:",
        "or False:",
        ["tests/firmware_bridge/test_link_recovery.py", "-k", "verdict_of_another_epoch"],
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for name in ROOMS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def run_tests(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.parametrize("arguments", sorted({tuple(defect.tests) for defect in DEFECTS.values()}))
def test_without_a_defect_they_pass(copy: Path, arguments: tuple[str, ...]) -> None:
    run = run_tests(copy, list(arguments))
    assert run.returncode == 0, run.stdout[-2000:]


@pytest.mark.parametrize("name", DEFECTS)
def test_planted_defect_turns_its_tests_red(copy: Path, name: str) -> None:
    defect = DEFECTS[name]
    file = copy / defect.file
    text = file.read_text(encoding="utf-8")
    assert text.count(defect.old) == 1, f"{defect.file} no longer has {defect.old!r}: plant the defect anew"
    file.write_text(text.replace(defect.old, defect.new), encoding="utf-8")
    try:
        run = run_tests(copy, defect.tests)
    finally:
        file.write_text(text, encoding="utf-8")
    assert run.returncode == 1, f"not noticed:\n{run.stdout[-2000:]}{run.stderr[-500:]}"
