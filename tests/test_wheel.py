"""The wheel, installed where a box would: an environment of its own, without torch, outside the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program of the box's environment, in an empty folder."""
    folder = tmp_path_factory.mktemp("box")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", str(ROOT), "--no-deps", "-w", str(folder)], check=True, timeout=300)
    (wheel,) = folder.glob("beltline-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True, timeout=120)
    minor = f"py{sys.version_info.major}{sys.version_info.minor}"
    constraints = ROOT / "constraints" / f"{minor}.txt"
    install = [str(folder / "env/bin/pip"), "install", "--quiet", "-c", str(constraints), f"{wheel}[edge]"]
    subprocess.run(install, check=True, timeout=280)
    empty = folder / "empty"
    empty.mkdir()

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "env/bin" / program), *arguments]
        return subprocess.run(command, cwd=empty, capture_output=True, text=True, timeout=120, check=False)

    return run


def test_box_has_no_torch(box: Callable[..., Any]) -> None:
    assert "No module named 'torch'" in box("python", "-c", "import torch").stderr


def test_command_shows_its_help(box: Callable[..., Any]) -> None:
    shown = box("beltline", "--help")
    assert shown.returncode == 0
    assert "compile" in shown.stdout


def test_compile_names_the_missing_extra(box: Callable[..., Any]) -> None:
    shown = box("beltline", "compile", "parts", "-o", "x.bundle")
    assert shown.returncode == 3
    assert "pip install 'beltline[compile]'" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_bundle_is_tried_on_a_folder(
    box: Callable[..., Any], make_bundle: Callable[..., Path], make_parts: Callable[..., Path], tmp_path: Path
) -> None:
    station = tmp_path / "station.toml"
    station.write_text(
        f'[bundle]\npath = "{make_bundle()}"\nallow_unsigned = true\n'
        f'[source]\nkind = "folder"\npath = "{make_parts(128, 250, 128)}"\n'
    )
    checked = box("beltline", "run", "--check", str(station))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    ran = box("beltline", "run", "--json", str(station))
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [row["decision"] for row in rows if "decision" in row] == ["ACCEPT", "REJECT", "ACCEPT"], ran.stderr


def test_controller_and_units_travel_along(box: Callable[..., Any]) -> None:
    script = (
        "from pathlib import Path; from firmware_bridge.host_controller import build; import systemd.install;"
        "from importlib.resources import files;"
        "print(build(Path('controller')).exists(), (files('systemd') / 'beltline.service').is_file())"
    )
    shown = box("python", "-c", script)
    assert shown.stdout.split() == ["True", "True"], shown.stderr


def test_doctor_runs(box: Callable[..., Any]) -> None:
    shown = box("beltline", "doctor", "--json")
    assert "Traceback" not in shown.stderr
    json.loads(shown.stdout)
