"""Engines built by TensorRT-RTX without a GPU, their records, and all that must keep one from being loaded."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.bundle import Bundle, read_bundle
from edge.cli import main
from edge.doctor.examine import examine
from edge.engine.build import Options, build, parsed_layers
from edge.engine.flavour import NoTensorRTError, TensorRT, TensorRTError, find, require
from edge.engine.keep import build_engine, check_engine, graph_for, keep_engine
from edge.engine.machine import Machine, l4t, this_machine
from edge.engine.record import EngineError, Record, check_fit, engine_file, read_record, record_file
from edge.install import install
from edge.settings import Settings, load_settings

pytest.importorskip("tensorrt_rtx", reason="the builder has wheels for x86-64 alone")

RTX_3060 = Machine(gpu="NVIDIA GeForce RTX 3060", compute_capability="8.6", cuda="12.6")
DRIVER = """
#include <string.h>
int cuInit(unsigned f) { return FAILS; }
int cuDriverGetVersion(int *v) { *v = 12060; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int i) { *d = 7 + i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "NVIDIA GeForce RTX 3060", n); return d != 7; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : a == 76 ? 6 : -1; return d != 7; }
"""
STATION = """
[bundle]
allow_unsigned = true
[source]
kind = "folder"
path = "."
[paths]
journal = "journal.db"
bundles = "bundles"
engines = "engines"
"""


@pytest.fixture(scope="module")
def rtx() -> TensorRT:
    return require("tensorrt-rtx")


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Bundle:
    return read_bundle(make_bundle())


@pytest.fixture
def engine(tmp_path: Path, bundle: Bundle, rtx: TensorRT) -> Path:
    """An engine that was built ahead of time for a compute capability, with its record."""
    build_engine(tmp_path, bundle, "float", rtx, None, options=Options(compute_capabilities=["8.6"]))
    return engine_file(tmp_path, bundle, "float")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A CUDA driver that says that there is an RTX 3060; nothing can be computed with it."""
    driver = compiled(tmp_path, fails=0)
    for module in ("engine.keep", "doctor.box", "doctor.bundle", "commands.engine"):
        monkeypatch.setattr(f"edge.{module}.this_machine", lambda: this_machine(str(driver), Path("/nowhere")))
    return driver


def compiled(folder: Path, *, fails: int) -> Path:
    source, library = folder / "cuda.c", folder / f"libcuda{fails}.so"
    source.write_text(DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", f"-DFAILS={fails}", source, "-o", library], check=True)
    return library


def station(folder: Path) -> Settings:
    (folder / "station.toml").write_text(STATION)
    return load_settings(folder / "station.toml")


# The machine


def test_the_gpu_is_asked_of_the_driver(tmp_path: Path) -> None:
    assert this_machine(str(compiled(tmp_path, fails=0)), Path("/nowhere")) == RTX_3060


def test_no_driver_and_no_device_is_no_gpu(tmp_path: Path) -> None:
    assert this_machine("libcuda-that-is-not-there.so") is None
    assert this_machine(str(compiled(tmp_path, fails=100))) is None


def test_the_release_of_a_jetson_is_read(tmp_path: Path) -> None:
    file = tmp_path / "nv_tegra_release"
    file.write_text("# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64\n")
    assert l4t(file) == "36.4.0"
    assert l4t(tmp_path / "missing") is None


# The builder


def test_the_layers_are_those_of_the_graph(tiny: SimpleNamespace, rtx: TensorRT) -> None:
    built = build(tiny.graph(), rtx, None, Options(compute_capabilities=["8.6", "8.9"]))
    assert built.compute_capabilities == ["8.6", "8.9"]
    assert built.layers["pooling"] == {"float": 1}
    assert built.layers["matrix_multiply"] == {"float": 1}
    assert parsed_layers(tiny.graph(), rtx) == built.layers
    one = build(tiny.graph(), rtx, None, Options(compute_capabilities=["8.6"]))
    assert len(built.engine) > len(one.engine) > 1000


def test_progress_is_told(tiny: SimpleNamespace, rtx: TensorRT) -> None:
    told: list[tuple[str, int, int]] = []
    build(tiny.graph(), rtx, None, Options(compute_capabilities=["8.6"]), tick=lambda *step: told.append(step))
    whole = [(done, steps) for phase, done, steps in told if phase == "Building engine"]
    assert whole[0][0] == 0
    assert whole[-1][0] == whole[-1][1] > 1


def test_ctrl_c_stops_the_builder(tiny: SimpleNamespace, rtx: TensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    began = threading.Event()

    def tick(phase: str, *_: int) -> None:
        told.append(phase)
        if not began.is_set():
            began.set()
            time.sleep(0.2)  # until it is told to stop

    def interrupted(_: object) -> None:
        began.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tiny.graph(), rtx, None, Options(compute_capabilities=["8.6"]), tick=tick)
    assert "Building engine from subgraph" not in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no GPU here: name the compute capability to build for"),
        ({"compute_capabilities": ["8.7"]}, "does not build for 8.7, but for .*8.6"),
        ({"compute_capabilities": ["8.6"], "hardware": "ampere-plus"}, "hardware is an option of TensorRT, not of"),
        ({"compute_capabilities": ["8.6"], "dla_core": 0}, "DLA is an option of TensorRT, not of"),
        ({"compute_capabilities": ["8.6"], "batches": (1, 4, 2)}, r"batches \(1, 4, 2\).*must be in order"),
    ],
)
def test_what_cannot_be_built_is_said(options: dict[str, Any], said: str, tiny: SimpleNamespace, rtx: TensorRT) -> None:
    with pytest.raises(TensorRTError, match=said):
        build(tiny.graph(), rtx, None, Options(**options))


def test_tensorrt_itself_builds_for_its_own_gpu_alone(tiny: SimpleNamespace, rtx: TensorRT) -> None:
    plain = TensorRT("tensorrt", "10.3.0", rtx.api)
    with pytest.raises(TensorRTError, match="no NVIDIA GPU that CUDA can use"):
        build(tiny.graph(), plain, None)
    with pytest.raises(TensorRTError, match=r"builds for the GPU that it runs on \(NVIDIA GeForce RTX 3060, 8.6\)"):
        build(tiny.graph(), plain, RTX_3060, Options(compute_capabilities=["8.7"]))


def test_no_graph_is_refused(rtx: TensorRT) -> None:
    with pytest.raises(TensorRTError, match="Failed to parse the ONNX model"):
        build(b"no graph" * 10, rtx, None, Options(compute_capabilities=["8.6"]))


def test_without_tensorrt_the_install_line_is_said() -> None:
    assert find("tensorrt") is None  # no GPU here, so it is not among the test's packages
    with pytest.raises(NoTensorRTError, match=r"TensorRT is not installed\. On a Jetson"):
        require("tensorrt")
    assert NoTensorRTError.exit_code == 3


# The record


def test_an_engine_fits_where_it_was_built_for(tmp_path: Path, bundle: Bundle, engine: Path, rtx: TensorRT) -> None:
    data, record = check_engine(tmp_path, bundle, "float", rtx, RTX_3060)
    assert data == engine.read_bytes()
    assert record.graph_sha256 == bundle.graph_sha256("float")
    assert (record.version, record.compute_capabilities, record.machine) == (rtx.version, ["8.6"], None)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def edit(file: Path, **changes: Any) -> None:
    record = record_file(file)
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:1000]), "has 1000 bytes, its record says .* cut off"),
        (flip, "was changed or damaged"),
        (lambda file: file.unlink(), "No such file or directory, though its record is there"),
        (lambda file: record_file(file).unlink(), "is missing: nobody knows what float.engine was built for"),
        (lambda file: edit(file, compute_capabilities=["8.9"]), "was edited or damaged: its own hash does not fit"),
        (lambda file: edit(file, version="9.9"), "was edited or damaged"),
        (lambda file: edit(file, engine_bytes="many"), "is no record .engine_bytes"),
        (lambda file: record_file(file).write_bytes(b"{"), "is no record"),
        (lambda file: [file.unlink(), record_file(file).unlink()], "no engine was built"),
    ],
)
def test_damage_is_found(
    *, damage: Callable[[Path], Any], said: str, tmp_path: Path, bundle: Bundle, engine: Path, rtx: TensorRT
) -> None:
    damage(engine)
    with pytest.raises(EngineError, match=said):
        check_engine(tmp_path, bundle, "float", rtx, RTX_3060)


def test_an_engine_of_another_graph_is_refused(
    *,
    tmp_path: Path,
    tiny: SimpleNamespace,
    make_bundle: Callable[..., Path],
    engine: Path,
    bundle: Bundle,
    rtx: TensorRT,
) -> None:
    other = read_bundle(make_bundle(name="other.bundle", graphs={"float": tiny.graph(gain=2.0)}))
    engine.parent.rename(tmp_path / other.id)
    with pytest.raises(EngineError, match="was built from graph 'float'"):
        check_engine(tmp_path, other, "float", rtx, RTX_3060)


def changed(machine: Machine, **changes: str) -> Machine:
    return machine.model_copy(update=changes)


@pytest.mark.parametrize(
    ("version", "machine", "said"),
    [
        ("1.7.1.116", None, "here is no GPU that CUDA can use"),
        ("1.6.0.1", RTX_3060, "is for TensorRT-RTX .*; here is 1.6.0.1"),
        (None, RTX_3060, "here is none"),
        ("1.7.1.116", changed(RTX_3060, gpu="RTX 4090", compute_capability="8.9"), "RTX 4090 has 8.9"),
        ("1.7.1.116", changed(RTX_3060, gpu="RTX 3090"), "built with GPU NVIDIA GeForce RTX 3060; here is RTX 3090"),
        ("1.7.1.116", changed(RTX_3060, cuda="13.0"), "built with CUDA 12.6; here is 13.0"),
        ("1.7.1.116", changed(RTX_3060, l4t="36.4.0"), "built with L4T None; here is 36.4.0"),
    ],
)
def test_another_machine_is_named(
    *, version: str | None, machine: Machine | None, said: str, tmp_path: Path, bundle: Bundle, rtx: TensorRT
) -> None:
    record = build_engine(tmp_path, bundle, "float", rtx, RTX_3060, options=Options())
    record = record.model_copy(update={"version": "1.7.1.116"})
    here = TensorRT("tensorrt-rtx", version, rtx.api) if version else None
    check_fit(tmp_path, record, TensorRT("tensorrt-rtx", record.version, rtx.api), RTX_3060)
    with pytest.raises(EngineError, match=said):
        check_fit(tmp_path, record, here, machine)


def plain_record(engine: Path, **options: Any) -> Record:
    return read_record(engine).model_copy(
        update={"flavour": "tensorrt", "version": "10.3.0.26", "machine": RTX_3060, "options": Options(**options)}
    )


@pytest.mark.parametrize(
    ("options", "version", "machine", "fits"),
    [
        ({}, "10.3.0.26", RTX_3060, True),
        ({}, "10.4.0.1", RTX_3060, False),
        ({"version_compatible": True}, "10.10.0.1", RTX_3060, True),  # not by the alphabet
        ({"version_compatible": True}, "10.2.0.1", RTX_3060, False),
        ({"version_compatible": True}, "11.0.0.1", RTX_3060, False),
        ({"hardware": "ampere-plus"}, "10.3.0.26", changed(RTX_3060, gpu="B", compute_capability="12.0"), True),
        ({"hardware": "ampere-plus"}, "10.3.0.26", changed(RTX_3060, gpu="T4", compute_capability="7.5"), False),
        ({"hardware": "same-capability"}, "10.3.0.26", changed(RTX_3060, gpu="RTX 3090"), True),
        ({"hardware": "same-capability"}, "10.3.0.26", changed(RTX_3060, compute_capability="8.9"), False),
    ],
)
def test_a_compatible_flavour_fits_more(
    options: dict[str, Any], version: str, machine: Machine, fits: bool, engine: Path
) -> None:
    def fit() -> None:
        check_fit(engine, plain_record(engine, **options), TensorRT("tensorrt", version, None), machine)

    if fits:
        fit()
    else:
        with pytest.raises(EngineError):
            fit()


# At the install


def test_nothing_is_built_without_a_gpu(tmp_path: Path, bundle: Bundle) -> None:
    assert keep_engine(tmp_path, bundle) is None
    assert not (tmp_path / bundle.id).exists()


def test_the_engine_is_kept_and_built_again_where_it_does_not_fit(tmp_path: Path, bundle: Bundle, gpu: Path) -> None:
    first, again = keep_engine(tmp_path, bundle), keep_engine(tmp_path, bundle)
    assert first
    assert again
    assert first.record == again.record
    assert first.record
    assert first.record.machine == RTX_3060
    assert "built in" in first.words
    assert again.words.endswith("on NVIDIA GeForce RTX 3060: fits")
    flip(engine_file(tmp_path, bundle, "float"))
    third = keep_engine(tmp_path, bundle)
    assert third
    assert "was changed or damaged" in third.words
    assert keep_engine(tmp_path, bundle).words.endswith("fits")  # type: ignore[union-attr]


def test_a_graph_that_tensorrt_refuses_keeps_no_bundle_from_running(
    tmp_path: Path, make_bundle: Callable[..., Path], tiny: SimpleNamespace, gpu: Path
) -> None:
    refused = read_bundle(make_bundle(graphs={"float": tiny.graph(), "trt": b"no graph"}))
    assert graph_for(refused) == "trt"
    kept = keep_engine(tmp_path, refused)
    assert kept
    assert kept.record is None
    assert "Failed to parse" in kept.words
    assert kept.words.endswith("So the bundle runs on the processor, by ONNX Runtime.")


def test_an_install_keeps_the_engine_and_doctor_shows_it(
    tmp_path: Path, make_bundle: Callable[..., Path], gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.speed.MEASURE_NS", 0)
    monkeypatch.setattr("edge.doctor.bundle.MEASURE_NS", 0)
    settings = station(tmp_path)
    done = install(settings, make_bundle())
    assert "built in" in done.engine

    def found() -> str:
        return next(finding.found for finding in examine(settings, done.bundle) if finding.what == "engine")

    assert "fits" in found()
    flip(engine_file(settings.paths.engines, done.bundle, "float"))
    assert "was changed or damaged" in found()
    assert "Until then the bundle runs on the processor, by ONNX Runtime." in found()


def test_without_a_gpu_an_install_is_as_it_was(
    tmp_path: Path, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.speed.MEASURE_NS", 0)
    monkeypatch.setattr("edge.doctor.bundle.MEASURE_NS", 0)
    settings = station(tmp_path)
    done = install(settings, make_bundle())
    assert done.engine == ""
    assert [file.name for file in (settings.paths.engines / done.bundle.id).iterdir()] == ["speed.json"]
    assert "engine" not in {finding.what for finding in examine(settings, done.bundle)}


# The command


def test_build_inspect_and_check(
    tmp_path: Path, make_bundle: Callable[..., Path], capfd: pytest.CaptureFixture[str], gpu: Path
) -> None:
    path = str(make_bundle())
    where = [path, "--engines", str(tmp_path / "engines"), "--json"]
    assert main(["engine", "check", *where]) == 1
    assert "no engine was built" in json.loads(capfd.readouterr().out)["error"]
    assert main(["engine", "build", *where, "--compute-capability", "8.6", "--batch", "4"]) == 0
    built = json.loads(capfd.readouterr().out)
    assert built["record"]["options"]["batches"] == [1, 4, 4]
    assert main(["engine", "check", *where]) == 0
    assert json.loads(capfd.readouterr().out) == built
    assert main(["engine", "inspect", *where]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["layers"] == built["record"]["layers"] == told["record"]["layers"]
    flip(Path(built["engine"]))
    assert main(["engine", "check", *where]) == 1
    assert "was changed or damaged" in json.loads(capfd.readouterr().out)["error"]


def test_the_command_tells_people(
    tmp_path: Path, make_bundle: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    where = [str(make_bundle()), "--engines", str(tmp_path)]
    assert main(["engine", "build", *where, "--compute-capability", "8.6"]) == 0
    assert "any GPU of compute capability 8.6" in capfd.readouterr().out
    assert main(["engine", "inspect", *where]) == 0
    out = capfd.readouterr().out
    assert "pooling" in out
    assert "by TensorRT-RTX" in out
    assert main(["engine", "check", *where]) == 1
    assert "here is no GPU that CUDA can use" in capfd.readouterr().err
    assert main(["engine", "build", *where]) == 1
    assert "name the compute capability" in capfd.readouterr().err
    assert main(["engine", "build", *where, "--graph", "trt"]) == 1
    assert "has no graph 'trt'" in capfd.readouterr().err
