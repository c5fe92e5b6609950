"""`beltline run --check`: what a station file means on this box, and what would stop it. Starts nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from edge.bundle import Bundle, Spec, Threshold
from edge.control import occupied
from edge.errors import BeltlineError
from edge.front_end import FrameError
from edge.journal_file import unusable
from edge.load import Chosen, bundle_path, choose, open_bundle
from edge.lock import is_held
from edge.prepare import prepare
from edge.reject import describe, too_slow
from edge.scorer import measure_ms, slow_step_ms
from edge.settings import CameraSource, FolderSource, Settings, VideoSource
from edge.sources import CaptureError, open_source
from edge.sources.camera import device_problem
from edge.view import wanted
from firmware_bridge.mqtt.settings import MqttSettings
from firmware_bridge.parts import PartId, Trigger

LONGEST_SOCKET_PATH = 107
_TOO_LONG = f"longer than the {LONGEST_SOCKET_PATH} bytes that a socket's path may have. Change"


class Finding(NamedTuple):
    what: str
    found: str
    ok: bool = True


def check_station(settings: Settings) -> list[Finding]:
    """Everything that the station needs, in the order in which it would be started."""
    findings = [Finding("station", "/".join((settings.station.site, settings.station.line, settings.station.name)))]
    spec: Spec | None = None
    try:
        bundle, signature = open_bundle(settings, bundle_path(settings))
        findings += _bundle(bundle, signature)
        class_index = bundle.class_index(settings.bundle.class_name)
        if len(bundle.manifest.classes) > 1:
            findings.append(Finding("class", f"{settings.bundle.class_name}, of {', '.join(bundle.manifest.classes)}"))
        spec = bundle.spec(class_index)
        findings += _frames(spec)
        with closing(choose(bundle, settings)) as chosen:
            findings += _chosen(chosen, settings)
    except BeltlineError as error:
        findings.append(Finding("bundle", str(error), ok=False))
    findings += _source(settings, spec)
    what, ok = describe(settings.reject)
    hint = "; `beltline doctor` tries it" if ok and settings.reject.kind == "modbus" else ""
    findings.append(Finding("reject path", what + hint, ok))
    findings.append(_mqtt(settings.mqtt))
    bench = settings.reject.kind == "none"
    for key, file, look in (
        ("journal", settings.paths.journal, _journal),
        ("control", settings.paths.control, _control),
    ):
        if bench and key not in settings.paths.model_fields_set:
            findings.append(Finding(key, "none: a bench keeps nothing unless [paths] says so"))
        else:
            findings.append(look(key, file))
    return findings


def _bundle(bundle: Bundle, signature: str) -> Iterator[Finding]:
    manifest = bundle.manifest
    yield Finding("bundle", f"{manifest.name} {manifest.version}, {manifest.method}, id {bundle.id[:12]}")
    yield Finding("signature", signature)


def _frames(spec: Spec) -> Iterator[Finding]:
    if image := spec.image:
        pixels = f"{_span(image.source.width)} x {_span(image.source.height)} pixels"
        yield Finding(
            "frames",
            f"{pixels}, {image.source.channels} channel(s), white {image.source.white}; scored at "
            f"{image.width} x {image.height}",
        )
    if scan := spec.scan:
        nearest, farthest = scan.source.distance_mm
        yield Finding(
            "scans",
            f"{_span(scan.source.width)} x {_span(scan.source.height)} points, {nearest:.4g} to {farthest:.4g} mm "
            f"away, in {scan.source.unit}, background {scan.background}; scored at {scan.width} x {scan.height}",
        )


def _chosen(chosen: Chosen, settings: Settings) -> Iterator[Finding]:
    scorer = chosen.scorer
    graph_ms = measure_ms(scorer)
    yield Finding("graph", f"{scorer.graph}, {graph_ms:.1f} ms here, gives its golden answers")
    yield Finding("runtime", _runtime(chosen))
    if problem := too_slow(settings.reject, slow_step_ms(scorer)):
        yield Finding("step limit", problem, ok=False)
    default = scorer.bundle.thresholds[scorer.class_index][scorer.graph]
    own = settings.bundle.threshold
    if own is not None:
        words = f"{own:.6g} from the station file (the bundle's own: {default.value:.6g})"
        doubt = scorer.doubt(own)
        yield Finding("threshold", f"{words}: {doubt}" if doubt else words, not doubt)
        return
    yield Finding("threshold", promise(default))


def _runtime(chosen: Chosen) -> str:
    runtime, fallback = chosen.scorer.runtime, chosen.fallback
    if chosen.instead_of_engine:
        return f"{runtime.name}, not the engine that was chosen at the install: {chosen.instead_of_engine}"
    if not runtime.engine:
        return runtime.name
    by = f"graph {fallback.graph} by {fallback.runtime.name}" if fallback else "nothing, which would be too slow"
    return f"{runtime.name}, engine {runtime.engine[:12]}; if it fails: {by}"


def promise(threshold: Threshold) -> str:
    """What a bundle's own threshold promises, for people."""
    low, high = threshold.interval
    notes = " approximate." if threshold.approximate and "approximate" not in threshold.rule else ""
    notes += f" {threshold.flagged}." if threshold.flagged else ""
    return (
        f"{threshold.value:.6g} for {threshold.target_false_reject:.2%} false rejects ({low:.2%} to {high:.2%}), set "
        f"on {threshold.parts} parts: {threshold.rule}.{notes}"
    )


def _source(settings: Settings, spec: Spec | None) -> Iterator[Finding]:
    source = settings.source
    if isinstance(source, CameraSource):
        problem = device_problem(source.device)
        yield Finding("source", f"camera {source.device}" + (f": {problem}" if problem else ""), not problem)
    elif isinstance(source, (FolderSource, VideoSource)):
        yield _first_picture(source, spec, bench=settings.reject.kind == "none")
    elif len(os.fsencode(source.socket)) > LONGEST_SOCKET_PATH:
        yield Finding("source", f"belt {source.socket}: {_TOO_LONG} [source] socket.", ok=False)
    else:
        there = source.socket.exists()
        yield Finding("source", f"belt {source.socket}" + ("" if there else ": not there: start the simulator"), there)


def _first_picture(settings: FolderSource | VideoSource, spec: Spec | None, *, bench: bool) -> Finding:
    try:
        source = open_source(settings, bench=bench, wanted=wanted(spec))
        try:
            frame = source.frame(Trigger(PartId(0, 1), 0, 0, 0, 0), 0)
        finally:
            source.close()
        assert frame is not None
        if spec:
            prepare(frame.image, frame.scan, spec)
        if source.problem:
            return Finding("source", source.problem, ok=False)
    except BeltlineError as error:
        return Finding("source", str(error), ok=False)
    except (CaptureError, FrameError) as error:
        return Finding("source", f"{settings.kind} {settings.path}: the first picture: {error}", ok=False)
    seen = {"picture": frame.image, "scan": frame.scan}
    words = " and ".join(f"{what} is {a.shape[1]} x {a.shape[0]}" for what, a in seen.items() if a is not None)
    return Finding("source", f"{settings.kind} {settings.path}: the first {words}")


def _mqtt(settings: MqttSettings | None) -> Finding:
    if settings is None:
        return Finding("mqtt", "none: nothing is published")
    for file in (settings.ca_file, settings.cert_file, settings.key_file, settings.password_file):
        if file and not (file.is_file() and os.access(file, os.R_OK)):
            return Finding("mqtt", f"{file}: not there or not readable. Create it, or correct [mqtt].", ok=False)
    return Finding("mqtt", f"{settings.host}, port {settings.use_port}; `beltline doctor` tries it")


def _writable(key: str, file: Path) -> Finding:
    place = file if file.exists() else file.parent
    if os.access(place, os.W_OK):
        return Finding(key, str(file))
    problem = "not writable" if place.exists() else "the folder does not exist"
    return Finding(key, f"{file}: {problem}. Create it, or set [paths] {key}.", ok=False)


def _journal(key: str, file: Path) -> Finding:
    if problem := unusable(file):
        return Finding(key, f"{problem} Or set [paths] journal.", ok=False)
    if is_held(file):
        return Finding(key, f"{file}: a station is running and writes this journal", ok=False)
    return _writable(key, file)


def _control(key: str, file: Path) -> Finding:
    if len(os.fsencode(file)) > LONGEST_SOCKET_PATH:
        words = (
            f"{file}: longer than the {LONGEST_SOCKET_PATH} bytes that a socket's path may have. Set [paths] control."
        )
        return Finding(key, words, ok=False)
    if problem := occupied(file):
        return Finding(key, problem, ok=False)
    return _writable(key, file if file.parent.exists() else file.parent)  # a missing folder is made at the start


def _span(limits: tuple[int, int]) -> str:
    return str(limits[0]) if limits[0] == limits[1] else f"{limits[0]}..{limits[1]}"
