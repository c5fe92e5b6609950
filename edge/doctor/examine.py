"""What this box has and what it lacks, as findings for people and scripts. Looks only and changes nothing."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

from edge.bundle import Bundle
from edge.doctor.box import accelerator, devices, processor, rights, software, system
from edge.doctor.bundle import chosen_class, engine, graphs, signature
from edge.doctor.finding import Finding
from edge.doctor.station import broker, installed, reject_path
from edge.settings import BundleChoice, Settings
from edge.speed import read_speed

STATE = Path("/var/lib/beltline")


def examine(settings: Settings | None = None, bundle: Bundle | None = None) -> Iterator[Finding]:
    """All findings, one by one as they are made (a broker or a bundle takes seconds)."""
    yield from software()
    yield from processor(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"), platform.machine())
    yield from accelerator()
    yield from devices()
    yield from rights()
    yield from system(settings.paths.journal.parent if settings else STATE)
    if settings:
        yield reject_path(settings)
        if settings.mqtt:
            yield broker(settings.mqtt, settings)
        else:
            yield Finding("station", "broker", "no [mqtt] table: nothing is published", "note")
        yield from installed(settings)
    if bundle:
        who = signature(bundle, settings.bundle if settings else BundleChoice(allow_unsigned=True))
        yield who
        if who.level == "missing":
            return
        speed = read_speed(settings.paths.engines, bundle.id) if settings and not settings.bundle.path else None
        on_gpu = engine(settings.paths.engines, bundle, speed) if settings and not settings.bundle.path else None
        if on_gpu:
            yield on_gpu
        asked = (settings.bundle.graph, settings.bundle.threads) if settings else ()
        yield from graphs(bundle, *asked, speed=speed, engine_runs=on_gpu is not None and on_gpu.level == "ok")
        if settings:
            yield from chosen_class(bundle, settings.bundle.class_name)
