from __future__ import annotations

import re
from pathlib import Path

import pytest

import firmware_bridge
from firmware_bridge.host_controller import CORE, BuildError, HostController, build

SOURCES = Path(firmware_bridge.__file__).parent / "controller"


def test_core_needs_no_operating_system_and_no_heap() -> None:
    allowed = {"<stdbool.h>", "<stddef.h>", "<stdint.h>"}
    for name in (*CORE, *(path.name for path in SOURCES.glob("*.h"))):
        text = (SOURCES / name).read_text()
        assert set(re.findall(r"#include (<.*>)", text)) <= allowed, name
        assert not re.search(r"\b(malloc|calloc|realloc|free|alloca)\s*\(", text), name


def test_missing_compiler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="install gcc"):
        build(tmp_path)


def test_compiler_errors_are_shown(tmp_path: Path) -> None:
    for path in SOURCES.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "wire.c").write_text("int broken(")
    with pytest.raises(BuildError, match="cc refused the controller"):
        build(tmp_path / "out", sources=tmp_path)


def test_a_controller_that_cannot_start_is_said(controller_program: Path, tmp_path: Path) -> None:
    controller = HostController(controller_program, tmp_path / "missing" / "link", tmp_path / "pins")
    with pytest.raises(RuntimeError, match="did not open"):
        controller.start()


def test_link_name_is_stable_across_restarts(controller_program: Path, tmp_path: Path) -> None:
    controller = HostController(controller_program, tmp_path / "link", tmp_path / "pins")
    controller.start()
    assert controller.link.is_char_device()
    controller.kill()
    assert not controller.link.exists(), "it dangles: the port is gone"
    controller.start()
    assert controller.link.is_char_device()
    controller.stop()
    assert not controller.link.is_symlink()
