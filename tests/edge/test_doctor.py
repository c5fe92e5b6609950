"""`beltline doctor` on this box, with and without a station and a bundle."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymodbus.framer import FramerRTU
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from edge.bundle import read_bundle
from edge.check import check_station
from edge.cli import main
from edge.doctor.box import processor, rights, software, system
from edge.doctor.bundle import graphs
from edge.doctor.finding import Finding
from edge.doctor.station import broker, reject_path
from edge.lock import hold
from edge.settings import Settings, load_settings
from firmware_bridge.modbus import registers as r

STATION = """
[bundle]
path = "{bundle}"
allow_unsigned = true
[source]
kind = "folder"
path = "."
[paths]
journal = "journal.db"
[mqtt]
host = "127.0.0.1"
port = {port}
"""


def by_name(findings: Any) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


def station(folder: Path, port: int, bundle: str = "a.bundle") -> Settings:
    file = folder / "station.toml"
    file.write_text(STATION.format(port=port, bundle=bundle))
    return load_settings(file)


def test_the_software_is_found_with_its_versions() -> None:
    found = by_name(software())
    assert found["Python"].level == "ok"
    assert "onnxruntime 1." in found["extra edge"].found
    assert "paho-mqtt 2." in found["extra edge"].found
    assert found["extra edge"].level == "ok"


def test_a_missing_package_of_the_edge_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.doctor.box._version", lambda name: None if name == "pymodbus" else "9")
    found = by_name(software())["extra edge"]
    assert found.level == "missing"
    assert "lacks pymodbus: pip install 'beltline[edge]'" in found.found


@pytest.mark.parametrize(
    ("machine", "line", "level", "says"),
    [
        ("x86_64", "flags\t\t: fpu avx2 avx512_vnni", "ok", "AVX-512 VNNI"),
        ("x86_64", "flags\t\t: fpu avx2 avx_vnni", "ok", "AVX-VNNI"),
        ("x86_64", "flags\t\t: fpu avx2 avx512f", "note", "saturate"),
        ("x86_64", "flags\t\t: fpu sse4_2", "note", "none of"),
        ("x86_64", "flags\t\t: my_avx2_not", "note", "none of"),
        ("aarch64", "Features\t: fp asimd asimddp i8mm", "ok", "I8MM"),
        ("aarch64", "Features\t: fp asimd", "note", "without dot product"),
        ("riscv64", "", "note", "none of"),
    ],
)
def test_what_the_processor_means_for_int8(machine: str, line: str, level: str, says: str) -> None:
    found = by_name(processor(f"processor\t: 0\nmodel name\t: Thing 9\n{line}\n", machine))
    assert found["INT8"].level == level
    assert says in found["INT8"].found
    assert "Thing 9" in found["model"].found


def test_a_user_outside_the_groups_is_told_how_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("os.getegid", lambda: 1000)
    monkeypatch.setattr("os.getgroups", lambda: [1000])
    found = by_name(rights())["group dialout"]
    assert found.level == "missing"
    assert "usermod -aG dialout" in found.found


def test_a_full_disk_is_missing_something(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert by_name(system(tmp_path / "not" / "there"))["disk"].found.endswith(str(tmp_path))
    monkeypatch.setattr("edge.doctor.box.ENOUGH_DISK_BYTES", 10**18)
    assert by_name(system(tmp_path))["disk"].level == "missing"


def test_a_broker_that_answers_and_one_that_does_not(mosquitto: Any, tmp_path: Path) -> None:
    settings = station(tmp_path, mosquitto().port)
    assert settings.mqtt is not None
    found = broker(settings.mqtt, settings)
    assert found.level == "ok"
    assert "MQTT 5, no TLS" in found.found
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings = station(tmp_path, free.getsockname()[1])
        assert settings.mqtt is not None
        found = broker(settings.mqtt, settings)
    assert found.level == "missing"
    assert "Check host, port" in found.found


def plc_registers(order: Any = "high_first", layout: int = r.LAYOUT) -> list[int]:
    """Of a PLC with part 3 as its newest, its fault 5 latched."""
    longs = (70_000, 1_000, 2_000, 3, 3)
    header = [layout, r.READY | r.FAULT, 5, *(word for value in longs for word in r.split(value, order))]
    registers = header + [0] * (r.PLC_WORDS - len(header))
    at = r.TRIGGERS_AT + r.TRIGGER_WORDS * r.slot(3)
    registers[at : at + 2] = r.split(3, order)
    return registers


@contextmanager
def plc(registers: list[int]) -> Iterator[tuple[int, list[Any]]]:
    """Pymodbus's own server: its port, and what was asked of it."""
    asked: list[Any] = []

    async def ask(function: int, _: int, address: int, *more: Any) -> None:
        asked.append((function, address))

    block = SimData(0, values=registers, datatype=DataType.REGISTERS)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def serve() -> ModbusTcpServer:
        server = ModbusTcpServer(SimDevice(1, simdata=[block], action=ask), address=("127.0.0.1", 0))
        await server.serve_forever(background=True)
        return server

    server = asyncio.run_coroutine_threadsafe(serve(), loop).result(5)
    try:
        yield server.transport.sockets[0].getsockname()[1], asked  # type: ignore[union-attr]
    finally:
        asyncio.run_coroutine_threadsafe(server.shutdown(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


def modbus(folder: Path, reject: str) -> Settings:
    file = folder / "station.toml"
    file.write_text(STATION.format(port=1, bundle="a.bundle") + '[reject]\nkind = "modbus"\n' + reject)
    return load_settings(file)


def test_a_plc_that_answers_is_named_with_its_status_and_nothing_is_written(tmp_path: Path) -> None:
    with plc(plc_registers()) as (port, asked):
        settings = modbus(tmp_path, f'host = "127.0.0.1"\nport = {port}\n')
        found = reject_path(settings)
        assert found.level == "ok"
        assert "a beltline PLC, epoch 70000, newest part 3: ready, no belt permit, its fault 5 latched" in found.found
        assert {function for function, _ in asked} == {3}
        asked.clear()
        lock = hold(settings.paths.journal, "taken")
        found = reject_path(settings)
        lock.close()
        assert (found.level, asked) == ("note", [])
        assert "a station is running" in found.found


@pytest.mark.parametrize(
    ("registers", "says"),
    [
        (plc_registers(layout=0x1234), "holds 0x1234, not 0xb171: correct plc_base or unit"),
        (plc_registers("low_first"), "correct word_order"),
        ([r.LAYOUT, 0, 0], "answers exception 2: check plc_base"),
    ],
)
def test_another_map_is_named(tmp_path: Path, registers: list[int], says: str) -> None:
    with plc(registers) as (port, _):
        found = reject_path(modbus(tmp_path, f'host = "127.0.0.1"\nport = {port}\n'))
    assert found.level == "missing"
    assert says in found.found


def test_a_plc_that_is_not_there_is_missing_and_the_check_says_who_tries_it(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings = modbus(tmp_path, f'host = "127.0.0.1"\nport = {free.getsockname()[1]}\n')
        found = reject_path(settings)
    assert found.level == "missing"
    assert found.found.endswith("Check host, port and the network in [reject].")
    checked = {finding.what: finding for finding in check_station(settings)}["reject path"]
    assert checked.ok
    assert checked.found.endswith("; `beltline doctor` tries it")


def test_a_plc_on_a_serial_port_is_asked_where_the_port_is_free(tmp_path: Path) -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    settings = modbus(tmp_path, f'transport = "rtu"\ndevice = "{os.ttyname(slave)}"\nparity = "N"\n')
    registers = plc_registers()

    def answer() -> None:
        for _ in range(2):
            request = os.read(master, 8)
            at, count = request[3], request[5]
            words = b"".join(word.to_bytes(2, "big") for word in registers[at : at + count])
            frame = bytes([1, 3, len(words)]) + words
            os.write(master, frame + FramerRTU.compute_CRC(frame).to_bytes(2, "big"))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    found = reject_path(settings)
    thread.join(5)
    assert (found.level, "a beltline PLC, epoch 70000" in found.found) == ("ok", True), found
    found = reject_path(settings)
    assert (found.level, "1000 ms. Check baud, parity and unit" in found.found) == ("missing", True), found
    fcntl.flock(slave, fcntl.LOCK_EX)
    found = reject_path(settings)
    assert (found.level, "end what else uses it" in found.found) == ("missing", True), found
    os.close(slave)
    os.close(master)


def test_a_bundle_is_tested_and_measured_per_graph(make_bundle: Callable[..., Path], monkeypatch: Any) -> None:
    monkeypatch.setattr("edge.doctor.bundle.MEASURE_NS", 0)
    bundle = read_bundle(make_bundle())
    found = by_name(graphs(bundle))
    for name, graph in bundle.manifest.graphs.items():
        if graph.runtime == "onnxruntime":
            assert "self-test passed, p50" in found[f"graph {name}"].found
            assert "p99" in found[f"graph {name}"].found
    assert found["would run"].found.startswith("graph ")


@pytest.mark.parametrize(
    ("wanted", "float_ms", "says"),
    [("auto", 1.0, "int8"), ("auto", 0.5, "int8; float is faster here"), ("float", 1.0, "float")],
)
def test_the_graph_that_the_station_would_take_is_named(
    make_bundle: Callable[..., Path], tiny: Any, monkeypatch: Any, *, wanted: Any, float_ms: float, says: str
) -> None:
    times = {"float": float_ms, "int8": 1.05}
    monkeypatch.setattr("edge.doctor.bundle._measure", lambda scorer: [times[scorer.graph]])
    bundle = read_bundle(make_bundle(graphs={"float": tiny.graph(), "int8": tiny.graph()}))
    assert f"graph {says}" in by_name(graphs(bundle, wanted))["would run"].found


def test_a_graph_that_computes_otherwise_here_would_not_run(make_bundle: Callable[..., Path]) -> None:
    found = by_name(graphs(read_bundle(make_bundle(golden_shift=1.0))))
    assert found["graph float"].level == "missing"
    assert "self-test" in found["graph float"].found
    assert found["would run"].level == "missing"


def test_the_command_prints_json_and_fails_for_a_damaged_bundle(
    make_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("edge.doctor.bundle.MEASURE_NS", 0)
    good = make_bundle()
    main(["doctor", "--json", "--bundle", str(good)])
    findings = json.loads(capsys.readouterr().out)
    assert {"area", "what", "found", "level"} == set(findings[0])
    assert [finding["what"] for finding in findings if finding["area"] == "bundle"][-1] == "would run"
    raw = bytearray(good.read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "bad.bundle").write_bytes(bytes(raw))
    assert main(["doctor", "--json", "--bundle", str(tmp_path / "bad.bundle")]) == 1
    last = json.loads(capsys.readouterr().out)[-1]
    assert (last["what"], last["level"]) == ("file", "missing")
    assert "bad.bundle" in last["found"]


def test_a_station_file_with_a_wrong_key_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "station.toml"
    file.write_text(STATION.format(port=1, bundle="a.bundle") + 'passwort_file = "x"\n')
    assert main(["doctor", str(file)]) == 1
    assert "passwort_file" in capsys.readouterr().err
