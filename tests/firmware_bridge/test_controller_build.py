from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

import firmware_bridge
from firmware_bridge.belt.pins import EyeEdge, Pins
from firmware_bridge.host_controller import CORE, BuildError, HostController, build
from firmware_bridge.link import LinkSettings, wire

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


@pytest.mark.parametrize(
    "more",
    [["--buad", "9600"], ["--baud", "fast"], ["--baud", "0"], ["--epoch", "xyz"], ["--epoch", "100000000"], ["--baud"]],
)
def test_options_that_are_not_understood_are_a_usage_error(
    controller_program: Path, tmp_path: Path, more: list[str]
) -> None:
    command = [str(controller_program), "--link", str(tmp_path / "link"), "--pins", str(tmp_path / "pins"), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    assert done.returncode == 2
    assert "usage: host_port" in done.stderr


@pytest.mark.parametrize("what", ["no tick", "too many edges"])
def test_a_belt_that_cannot_be_answered_loses_its_pins(controller_program: Path, tmp_path: Path, what: str) -> None:
    settings = LinkSettings(
        port="none",
        decision_distance_counts=60,
        gate_distance_counts=100,
        gate_window_before_counts=10,
        gate_window_after_counts=25,
        min_part_spacing_counts=40,
        polarity="energise_to_reject",
    )
    pins = Pins(tmp_path / "pins")
    command = [str(controller_program), "--link", str(tmp_path / "link"), "--pins", str(tmp_path / "pins")]
    with subprocess.Popen([*command, "--epoch", "1"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        end = time.monotonic() + 5
        while not pins.accept(0, 0, False):
            assert time.monotonic() < end
            time.sleep(0.005)
        pins.tick(0, 0, [])
        with (tmp_path / "link").open("r+b", buffering=0) as link:
            link.write(wire.encode(wire.Frame(wire.HELLO, 0, 1, wire.hello_payload(7, new_epoch=False))))
            link.write(wire.encode(wire.Frame(wire.PARAMETERS, 1, 2, settings.parameters(inhibit=False))))
            time.sleep(0.1)
            if what == "no tick":
                pins._client.send(b"no tick")  # type: ignore[union-attr]
            else:  # each part makes one strobe and two moves of the gate
                edges = [EyeEdge(count + i, 1, i == 0) for count in range(200, 20_000, 200) for i in (0, 20)]
                pins.tick(20_000, 1, edges)
            assert "pins dropped: no tick, or more edges than one answer holds" in process.stderr.readline()
        process.terminate()
    pins.close()
