"""The station on an engine, and all that makes it go on without: on a stand-in for the GPU, which proves no engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge.bundle import Bundle, read_bundle
from edge.check import check_station
from edge.commands.control import _render
from edge.doctor.examine import examine
from edge.engine.build import Options
from edge.engine.keep import build_engine
from edge.engine.record import engine_file
from edge.engine_scorer import open_engine
from edge.install import Installation, install
from edge.judge import Judged
from edge.load import choose
from edge.publish import _flat
from edge.scorer import ScorerError
from edge.settings import Settings, load_settings
from edge.speed import MeasuredEngine, is_worth_it
from edge.start import started
from edge.station import Station
from firmware_bridge.parts import Decision, Reason

STATION = """
[bundle]
allow_unsigned = true
[source]
kind = "folder"
path = "parts"
[paths]
journal = "journal.db"
bundles = "bundles"
engines = "engines"
"""
ON_GPU = "TensorRT 10.3.0.26"


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in says nothing about speed."""
    for module in ("edge.speed", "edge.doctor.bundle"):
        monkeypatch.setattr(f"{module}.MEASURE_NS", 0)
        monkeypatch.setattr(f"{module}.MEASURE_AT_LEAST", 1)
    monkeypatch.setattr("edge.speed.WORTH_IT", 0.0)


@pytest.fixture
def settings(tmp_path: Path, make_parts: Callable[..., Path], gpu_box: Any) -> Settings:
    make_parts(128, 128, 128, 255)
    (tmp_path / "station.toml").write_text(STATION)
    return load_settings(tmp_path / "station.toml")


@pytest.fixture
def bundle_file(make_bundle: Callable[..., Path], tiny: SimpleNamespace) -> Path:
    """The engine's graph and the float graph have thresholds of their own."""
    return make_bundle(graphs={"float": tiny.graph(), "trt": tiny.graph()}, trt_threshold=0.4)


@pytest.fixture
def installed(settings: Settings, bundle_file: Path) -> Installation:
    return install(settings, bundle_file)


def run(settings: Settings, meanwhile: Callable[[int], None] = lambda _: None) -> tuple[list[Any], dict[str, Any]]:
    """Judge the four parts, the last of them bad. `meanwhile` is told after each how many were judged."""
    seen: list[Any] = []

    def note(judged: Judged) -> None:
        seen.append(judged.verdict)
        meanwhile(len(seen))

    with started(settings, on_judged=note) as station:
        station.run()
        return seen, station.status()


def runtime(settings: Settings) -> dict[str, Any]:
    with started(settings) as station:
        found: dict[str, Any] = station.status()["runtime"]
        return found


def given_back(gpu_box: Any) -> bool:
    return bool(gpu_box.cuda.room == 100_000 and gpu_box.cuda.said.count("push") == gpu_box.cuda.said.count("pop"))


def test_the_engine_that_was_measured_as_the_fastest_judges(
    settings: Settings, installed: Installation, gpu_box: Any
) -> None:
    assert installed.speed.engine
    assert installed.speed.engine.chosen
    assert installed.speed.graphs["trt"].problem
    assert given_back(gpu_box)
    runs = gpu_box.cuda.said.count("run")
    verdicts, status = run(settings)
    assert [verdict.decision for verdict in verdicts] == [Decision.ACCEPT] * 3 + [Decision.REJECT]
    assert {verdict.threshold for verdict in verdicts} == {0.4}
    assert gpu_box.cuda.said.count("run") > runs + 4
    assert status["graph"] == "trt"
    assert status["runtime"] == {
        "name": ON_GPU,
        "engine": installed.speed.engine.sha256,
        "instead_of_engine": None,
    }
    assert "engine given up" not in status["counters"]
    assert given_back(gpu_box)


def test_all_who_look_are_told(settings: Settings, installed: Installation) -> None:
    identity = installed.speed.engine.sha256  # type: ignore[union-attr]
    with started(settings) as station:
        status = station.status() | {"signature": "unsigned", "trial": None}
    assert _flat(status)["runtime.engine"] == identity
    rows = list(_render(status).renderables[0].columns[1].cells)  # type: ignore[attr-defined]
    assert f"{ON_GPU}, engine {identity[:12]}" in rows
    checked = {finding.what: finding.found for finding in check_station(settings)}
    assert checked["runtime"].startswith(f"{ON_GPU}, engine {identity[:12]}; if it fails: graph float by ONNX Runtime")
    found = {finding.what: finding for finding in examine(settings, installed.bundle)}
    assert found["engine"].level == "ok"
    assert "self-test passed, p50" in found["engine"].found
    assert "chosen: engine, else float" in found["speed at install"].found
    assert found["would run"].found == "the engine, else graph float, as chosen at the install"


@pytest.mark.parametrize("graph_ms", [2.0, 1.05])
def test_an_engine_that_is_hardly_faster_is_not_worth_it(graph_ms: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    engine, graph = MeasuredEngine(p50_ms=1.0), MeasuredEngine(p50_ms=graph_ms)
    assert is_worth_it(engine, graph) is (graph_ms == 2.0)
    assert not is_worth_it(MeasuredEngine(problem="no memory"), graph)


def test_a_slower_engine_does_not_run(
    settings: Settings, bundle_file: Path, monkeypatch: pytest.MonkeyPatch, gpu_box: Any
) -> None:
    monkeypatch.setattr("edge.speed.WORTH_IT", 1e9)
    done = install(settings, bundle_file)
    assert done.speed.engine
    assert done.speed.engine.p50_ms
    found = runtime(settings)
    assert (found["engine"], found["instead_of_engine"]) == (None, None)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda box: setattr(box, "gain", 1.5), "self-test: graph 'trt' scores"),
        (lambda box: setattr(box, "gain", np.nan), "not finite"),
        (lambda box: setattr(box.cuda, "room", 100), "too little memory"),
        (lambda box: setattr(box.network, "loads", False), "does not load the engine"),
    ],
)
def test_an_engine_that_cannot_be_trusted_keeps_no_bundle_from_running(
    spoil: Callable[[Any], None], said: str, settings: Settings, bundle_file: Path, gpu_box: Any
) -> None:
    spoil(gpu_box)
    done = install(settings, bundle_file)
    assert done.speed.engine
    assert said in done.speed.engine.problem
    assert not done.speed.engine.chosen
    verdicts, status = run(settings)
    assert {verdict.threshold for verdict in verdicts} == {0.5}
    assert status["runtime"]["name"].startswith("ONNX Runtime")


def newer_driver(box: Any, *_: Any) -> None:
    box.version = "10.4.0.1"


def out_of_memory(box: Any, *_: Any) -> None:
    box.cuda.room = 100


def other_answers(box: Any, *_: Any) -> None:
    box.gain = 1.5


def another_engine(box: Any, engines: Path, bundle: Bundle) -> None:
    box.plan = b"another engine"
    build_engine(engines, bundle, "trt", box.tensorrt(), None, options=Options(compute_capabilities=["8.7"]))


def no_engine(_: Any, engines: Path, bundle: Bundle) -> None:
    engine_file(engines, bundle, "trt").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (newer_driver, "is for TensorRT 10.3.0.26; here is 10.4.0.1"),
        (out_of_memory, "too little memory"),
        (other_answers, "self-test"),
        (another_engine, "after the install, which did not measure it"),
        (no_engine, "though its record is there"),
    ],
)
def test_what_changed_since_the_install_is_seen_and_onnx_runtime_runs(
    change: Callable[..., None], said: str, settings: Settings, installed: Installation, gpu_box: Any
) -> None:
    change(gpu_box, settings.paths.engines, installed.bundle)
    verdicts, status = run(settings)
    assert {verdict.threshold for verdict in verdicts} == {0.5}
    assert verdicts[0].decision is Decision.ACCEPT
    assert status["runtime"]["name"].startswith("ONNX Runtime")
    assert said in status["runtime"]["instead_of_engine"]
    assert said in next(finding.found for finding in check_station(settings) if finding.what == "runtime")
    found = {finding.what: finding for finding in examine(settings, installed.bundle)}
    assert said in found["engine"].found
    assert found["engine"].level == found["would run"].level == "note"


def test_another_processor_is_said(settings: Settings, installed: Installation) -> None:
    file = settings.paths.engines / installed.bundle.id / "speed.json"
    file.write_text(file.read_text().replace('"processor": "', '"processor": "another '))
    assert "was measured and chosen on another" in runtime(settings)["instead_of_engine"]


def test_a_gpu_that_fails_at_a_part_costs_that_part_alone(
    settings: Settings, installed: Installation, gpu_box: Any
) -> None:
    def fail(judged: int) -> None:
        gpu_box.cuda.broken = judged == 1

    verdicts, status = run(settings, fail)
    assert [verdict.reason for verdict in verdicts] == [
        Reason.SCORE_BELOW_THRESHOLD,
        Reason.SCORER_FAILED,
        Reason.SCORE_BELOW_THRESHOLD,
        Reason.SCORE_ABOVE_THRESHOLD,
    ]
    assert [verdict.threshold for verdict in verdicts[2:]] == [0.5, 0.5]
    assert status["counters"]["engine given up"] == 1
    assert status["graph"] == "float"
    assert "failed on the GPU: an illegal memory access" in status["runtime"]["instead_of_engine"]
    assert status["fault"] is None


def idle(station: Station) -> dict[str, Any]:
    station._idle()
    return station.status()


def test_an_engine_that_computes_otherwise_is_given_up(
    settings: Settings, installed: Installation, gpu_box: Any
) -> None:
    with started(settings) as station:
        assert idle(station)["runtime"]["name"] == ON_GPU
        gpu_box.gain = 1.5
        status = idle(station)
        assert status["runtime"]["name"].startswith("ONNX Runtime")
        assert "self-test: graph 'trt' scores" in status["runtime"]["instead_of_engine"]
        assert status["threshold"] == 0.5
        assert (status["fault"], status["counters"]["engine given up"]) == (None, 1)
        assert given_back(gpu_box)
        gpu_box.gain = 1.0
        assert idle(station)["runtime"]["name"].startswith("ONNX Runtime")


def test_where_nothing_stands_by_inspection_stops(
    settings: Settings, installed: Installation, gpu_box: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.load.too_slow", lambda _, ms: "too slow" if ms else None)  # as on a bench nothing is
    with started(settings) as station:
        gpu_box.gain = 1.5
        status = idle(station)
        assert status["state"] == "Error"
        assert "self-test" in status["fault"]
        assert status["runtime"]["name"] == ON_GPU
    assert given_back(gpu_box)


def test_a_graph_that_is_asked_for_runs_as_it_is(settings: Settings, installed: Installation) -> None:
    asked = settings.model_copy(update={"bundle": settings.bundle.model_copy(update={"graph": "float"})})
    chosen = choose(installed.bundle, asked)
    assert (chosen.scorer.graph, chosen.scorer.runtime.engine, chosen.instead_of_engine) == ("float", "", "")


def test_golden_answers_that_fail_leave_nothing_on_the_gpu(
    settings: Settings, installed: Installation, gpu_box: Any
) -> None:
    gpu_box.gain = 1.5
    with pytest.raises(ScorerError, match="This box computes otherwise: build the engine again"):
        open_engine(settings.paths.engines, read_bundle(installed.bundle.path))
    assert given_back(gpu_box)
