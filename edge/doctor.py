"""What this box has and what it lacks, as findings for people and scripts. Looks only and changes nothing."""

from __future__ import annotations

import grp
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from edge.bundle import Bundle, GraphName
from edge.engine.flavour import find
from edge.engine.keep import FALLBACK, check_here, graph_for
from edge.engine.machine import TEGRA, this_machine
from edge.engine.record import EngineError, engine_file, record_file
from edge.errors import BundleError
from edge.installed import InstalledError, read_state
from edge.lock import is_held
from edge.reject import describe
from edge.scorer import Scorer, ScorerError, preferred
from edge.settings import BundleChoice, ModbusReject, Settings
from edge.signature import accepted
from edge.speed import Measured, Speed, choose, processor_name, read_speed
from firmware_bridge.modbus import WireError, probe
from firmware_bridge.mqtt.identity import client_id
from firmware_bridge.mqtt.session import Session
from firmware_bridge.mqtt.settings import MqttSettings
from firmware_bridge.mqtt.version import VersionChoice

Level = Literal["ok", "note", "missing"]
STATE = Path("/var/lib/beltline")
ENOUGH_DISK_BYTES = 2 * 10**9
BROKER_PATIENCE_NS = 8_000_000_000
OLDEST_SYSTEMD = 249
MEASURE_NS, MEASURE_AT_LEAST = 1_500_000_000, 50
INT8_ON_X86 = {
    "avx512_vnni": "AVX-512 VNNI: INT8 products are exact and run at full speed",
    "avx_vnni": "AVX-VNNI: INT8 products are exact and run at full speed",
    "avx2": "AVX2 without VNNI: INT8 gains little, and uint8 x int8 products saturate unless weights are 7 bits; "
    "the golden self-test of a bundle decides whether its INT8 graph may run here",
}
INT8_ON_ARM = {
    "i8mm": "I8MM: INT8 matrix products in hardware",
    "asimddp": "dot product: INT8 products in hardware",
    "asimd": "NEON without dot product: INT8 gains little",
}


class Finding(NamedTuple):
    area: str
    what: str
    found: str
    level: Level = "ok"


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
        if settings and not settings.bundle.path:
            yield from engine(settings.paths.engines, bundle)
        yield from graphs(bundle, *((settings.bundle.graph, settings.bundle.threads) if settings else ()), speed=speed)
        if settings:
            yield from chosen_class(bundle, settings.bundle.class_name)


def software() -> Iterator[Finding]:
    """Python and the packages of each extra."""
    good = (3, 10) <= sys.version_info[:2] <= (3, 13)
    yield Finding("software", "Python", platform.python_version(), "ok" if good else "missing")
    yield Finding("software", "beltline", metadata.version("beltline"))
    for extra, names in sorted(_extras().items()):
        found = {name: _version(name) for name in names}
        lacking = [name for name, version in found.items() if version is None]
        text = ", ".join(f"{name} {version}" for name, version in found.items() if version)
        if lacking:
            text = f"lacks {', '.join(lacking)}: pip install 'beltline[{extra}]'" + (f"; has {text}" if text else "")
        yield Finding(
            "software", f"extra {extra}", text, "ok" if not lacking else "missing" if extra == "edge" else "note"
        )


def _extras() -> dict[str, list[str]]:
    """The packages that each extra names for this interpreter and machine."""
    extras: dict[str, list[str]] = {}
    for line in metadata.requires("beltline") or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        name = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
        if not extra or not name or name[0] == "beltline":
            continue
        older = re.search(r"python_version < ['\"]3\.(\d+)['\"]", marker)
        machine = re.search(r"platform_machine == ['\"](\w+)['\"]", marker)
        if (older and sys.version_info[1] >= int(older[1])) or (machine and machine[1] != platform.machine()):
            continue
        extras.setdefault(extra[1], []).append(name[0])
    return extras


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor(cpuinfo: str, machine: str) -> Iterator[Finding]:
    """What the processor means for INT8."""
    cores = len(os.sched_getaffinity(0))
    yield Finding("processor", "model", f"{processor_name(cpuinfo) or machine}, {cores} cores for this process")
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", cpuinfo, re.MULTILINE)
    known = flags[1].split() if flags else []
    meanings = INT8_ON_X86 if machine in ("x86_64", "AMD64", "i686") else INT8_ON_ARM
    for rank, (flag, meaning) in enumerate(meanings.items()):
        if flag in known:
            yield Finding("processor", "INT8", meaning, "note" if rank == 2 else "ok")
            return
    yield Finding(
        "processor", "INT8", f"none of {', '.join(meanings)}: expect several times the stated latencies", "note"
    )


def accelerator() -> Iterator[Finding]:
    import onnxruntime  # noqa: PLC0415 - slow to load, and its absence is a finding of software()

    providers = onnxruntime.get_available_providers()
    yield Finding("accelerator", "ONNX Runtime providers", ", ".join(providers))
    gpu = this_machine()
    driver = Path("/proc/driver/nvidia/version")
    if gpu:
        words = f"{gpu.gpu}, compute capability {gpu.compute_capability}, CUDA {gpu.cuda}"
        yield Finding("accelerator", "GPU", words + (f", Jetson Linux {gpu.l4t}" if gpu.l4t else ""))
    elif there := next((place for place in (TEGRA, driver) if place.exists()), None):
        words = f"CUDA does not find it for this user, though there is {there}: see to the driver and its devices"
        yield Finding("accelerator", "GPU", words, "note")
    else:
        yield Finding("accelerator", "GPU", "no NVIDIA driver: graphs run on the processor", "note")
    tensorrt = find()
    text = tensorrt.name if tensorrt else "not installed: no engines on this box"
    yield Finding("accelerator", "TensorRT", text, "ok" if tensorrt else "note")


def devices() -> Iterator[Finding]:
    from serial.tools import list_ports  # noqa: PLC0415 - of the extra `edge`

    ports = sorted(f"{port.device} ({port.description})" for port in list_ports.comports())
    yield Finding("devices", "serial ports", ", ".join(ports) or "none", "ok" if ports else "note")
    cameras = [
        f"/dev/{node.name} ({(node / 'name').read_text(encoding='utf-8').strip()})"
        for node in sorted(Path("/sys/class/video4linux").glob("video*"))
    ]
    yield Finding("devices", "cameras (V4L2)", ", ".join(cameras) or "none", "ok" if cameras else "note")


def rights() -> Iterator[Finding]:
    """Whether this user may open serial ports and cameras."""
    mine = {*os.getgroups(), os.getegid()}
    for name, what in (("dialout", "serial ports"), ("video", "cameras")):
        try:
            member = os.geteuid() == 0 or grp.getgrnam(name).gr_gid in mine
        except KeyError:
            yield Finding("rights", f"group {name}", "does not exist on this system", "note")
            continue
        advice = f"this user may not open {what}: sudo usermod -aG {name} $USER, then log in again"
        yield Finding(
            "rights", f"group {name}", f"may open {what}" if member else advice, "ok" if member else "missing"
        )


def system(state: Path) -> Iterator[Finding]:
    """Disk, clocks and the service manager."""
    folder = next(parent for parent in (state.absolute(), *state.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free at {folder}"
    enough = free >= ENOUGH_DISK_BYTES
    yield Finding(
        "system", "disk", text if enough else f"{text}: free some, 2 GB at least", "ok" if enough else "missing"
    )
    source = _first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    slow = source in ("hpet", "acpi_pm", "jiffies")
    yield Finding("system", "clock source", source or "unknown", "note" if slow else "ok")
    synchronised = Path("/run/systemd/timesync/synchronized").exists()
    text = "synchronised" if synchronised else "not known to be synchronised: times of day in messages may be off"
    yield Finding("system", "time of day", text, "ok" if synchronised else "note")
    governor = _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    locked = governor == "performance"
    text = f"governor {governor}" if governor else "not visible here"
    hint = (
        ""
        if locked or not governor
        else ": clocks change with load; set performance (Jetson: jetson_clocks) for a steady p99"
    )
    yield Finding("system", "processor clocks", text + hint, "ok" if locked else "note")
    yield _systemd()


def _systemd() -> Finding:
    if not shutil.which("systemctl"):
        return Finding("system", "systemd", "none: start beltline by other means, with a watchdog", "note")
    said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    number = re.match(r"systemd (\d+)", said)
    recent = number is not None and int(number[1]) >= OLDEST_SYSTEMD
    text = said.splitlines()[0] if said else "does not answer"
    return Finding(
        "system",
        "systemd",
        text if recent else f"{text}: the units need {OLDEST_SYSTEMD}",
        "ok" if recent else "missing",
    )


def _first_line(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def reject_path(settings: Settings) -> Finding:
    """A PLC is asked once; not while a station is running: many serve one connection, and so does a serial port."""
    text, there = describe(settings.reject)
    if not there or not isinstance(settings.reject, ModbusReject):
        return Finding("station", "reject path", text, "ok" if there else "missing")
    running = is_held(settings.paths.journal)
    if running is None:
        text += f": not tried, for this user may not see at {settings.paths.journal} whether a station is running"
        return Finding("station", "reject path", text, "note")
    if running:
        text += ": not tried, for a station is running; `beltline status` shows it"
        return Finding("station", "reject path", text, "note")
    try:
        return Finding("station", "reject path", f"{text}: {probe(settings.reject)}")
    except WireError as error:
        return Finding("station", "reject path", f"{text}: {error}", "missing")


def broker(mqtt: MqttSettings, settings: Settings) -> Finding:
    """Connect once, as somebody else than the publisher, which would else be thrown out."""
    where = settings.station
    identity = client_id(f"doctor {platform.node()} {os.getpid()}", where.site, where.line, where.name)
    versions = VersionChoice(mqtt.protocol)
    session = None
    for _ in range(4):  # three closes before an answer, then the older version
        now_ns = time.monotonic_ns()
        session = Session(mqtt, identity, versions.version(now_ns), None)
        while not session.connected and not session.ended and time.monotonic_ns() - now_ns < BROKER_PATIENCE_NS:
            session.step(0.05)
        if session.connected:
            found = (
                f"{mqtt.host}:{mqtt.use_port} answers, MQTT {session.version}, {'TLS' if mqtt.use_tls else 'no TLS'}"
            )
            session.close()
            return Finding("station", "broker", found)
        if session.ended:
            versions.ended(session.ended, session.version, now_ns)
            if session.ended.value not in ("closed_early", "wrong_version"):
                break
    return Finding("station", "broker", session.cause if session else "", "missing")


def installed(settings: Settings) -> Iterator[Finding]:
    """What `beltline install` put in place, and how its trial goes."""
    folder = settings.paths.bundles
    try:
        state = read_state(folder)
    except InstalledError as error:
        yield Finding("bundle", "installed", str(error), "note" if settings.bundle.path else "missing")
        return
    if state is None:
        if settings.bundle.path is None:
            yield Finding("bundle", "installed", f"nothing in {folder}: `beltline install`", "missing")
        return
    former = f", before it {state.previous[:12]}" if state.previous else ""
    used = "" if settings.bundle.path is None else "; not used, for the station file has a [bundle] path"
    yield Finding("bundle", "installed", f"{state.current[:12]}{former}{used}", "note" if used else "ok")
    if state.trial:
        stage = "running" if state.trial.running else "from the station's next start"
        words = f"{stage}, {settings.bundle.trial_parts} parts; else {state.trial.back_to[:12]} comes back"
        yield Finding("bundle", "trial", words, "note")
    elif state.last and state.last.result == "failed":
        yield Finding("bundle", "trial", f"{state.last.bundle[:12]} failed {state.last.at}: {state.last.why}", "note")


def signature(bundle: Bundle, choice: BundleChoice) -> Finding:
    """Whether this box accepts the bundle."""
    try:
        words = accepted(bundle, choice.keys, allow_unsigned=choice.allow_unsigned)
    except BundleError as error:
        return Finding("bundle", "signature", str(error), "missing")
    return Finding("bundle", "signature", words, "note" if words == "unsigned" else "ok")


def engine(engines: Path, bundle: Bundle) -> Iterator[Finding]:
    """Whether the engine of an installed bundle fits; nothing where there is none and there can be none."""
    name = graph_for(bundle)
    file = engine_file(engines, bundle, name)
    if not (file.exists() or record_file(file).exists() or (this_machine() and find())):
        return
    try:
        record = check_here(engines, bundle, name)
    except EngineError as error:
        yield Finding("bundle", "engine", f"{error} Until then {FALLBACK}.", "note")
        return
    words = f"of graph '{name}', {record.precision}, built {record.built}: fits, not run yet; {FALLBACK}"
    yield Finding("bundle", "engine", words)


def graphs(
    bundle: Bundle,
    wanted: GraphName | Literal["auto"] = "auto",
    threads: int = 1,
    *,
    speed: Speed | None = None,
) -> Iterator[Finding]:
    """Self-test and measure each graph on this box, and say which one the station would run.

    Args:
        bundle: one that is accepted.
        wanted: what the station file asks for.
        threads: of the processor.
        speed: what was measured at the install, for an installed bundle.

    """
    manifest = bundle.manifest
    yield Finding("bundle", "name", f"{manifest.name} {manifest.version}, {manifest.method}, id {bundle.id[:12]}")
    if len(manifest.classes) > 1:
        yield Finding("bundle", "classes", f"{', '.join(manifest.classes)}; each graph is tested with all of them")
    if speed:
        then = ", ".join(f"{name} p50 {each.p50_ms:.2f} ms" for name, each in speed.graphs.items() if each.p50_ms)
        words = f"{speed.measured}: {then}; chosen: {speed.graph}"
        where = "" if speed.holds else f"; not here: {speed.processor}, ONNX Runtime {speed.onnxruntime}. Install again"
        yield Finding("bundle", "speed at install", words + where, "note" if where else "ok")
    medians: dict[GraphName, float] = {}
    for name, graph in manifest.graphs.items():
        if graph.runtime != "onnxruntime":
            yield Finding("bundle", f"graph {name}", f"{graph.precision}, for TensorRT: not run on this box", "note")
            continue
        try:
            times_ms = sorted(_measure(Scorer(bundle, name, threads)))
        except ScorerError as error:
            yield Finding("bundle", f"graph {name}", str(error), "missing" if name == "float" else "note")
            continue
        medians[name] = times_ms[len(times_ms) // 2]
        p99 = times_ms[min(len(times_ms) - 1, len(times_ms) * 99 // 100)]
        yield Finding(
            "bundle",
            f"graph {name}",
            f"{graph.precision}: self-test passed, p50 {medians[name]:.2f} ms, p99 {p99:.2f} ms, "
            f"max {times_ms[-1]:.2f} ms on {threads} thread{'s' if threads > 1 else ''} ({len(times_ms)} runs)",
        )
    if wanted in medians:
        yield Finding("bundle", "would run", f"graph {wanted}, as the station file asks")
    elif wanted != "auto":
        yield Finding("bundle", "would run", f"none: graph '{wanted}' cannot be trusted on this box", "missing")
    elif speed and speed.holds and speed.graph in medians:
        yield Finding("bundle", "would run", f"graph {speed.graph}, as chosen at the install")
    elif medians:
        name = preferred(medians)[0]
        fastest = choose({name: Measured(p50_ms=ms) for name, ms in medians.items()})
        hint = f'; {fastest} is faster here: set graph = "{fastest}" in [bundle]' if fastest != name else ""
        yield Finding("bundle", "would run", f"graph {name}{hint}", "note" if hint else "ok")
    else:
        yield Finding("bundle", "would run", "none: no graph can be trusted on this box", "missing")


def chosen_class(bundle: Bundle, name: str | None) -> Iterator[Finding]:
    """Whether a station's class is one of the bundle's."""
    try:
        bundle.class_index(name)
    except BundleError as error:
        yield Finding("bundle", "class", str(error), "missing")
        return
    if name is not None:
        yield Finding("bundle", "class", f"{name}, as the station file asks")


def _measure(scorer: Scorer) -> list[float]:
    """Times of the graph on golden inputs, milliseconds."""
    times_ms: list[float] = []
    start_ns = time.perf_counter_ns()
    while len(times_ms) < MEASURE_AT_LEAST or time.perf_counter_ns() - start_ns < MEASURE_NS:
        before_ns = time.perf_counter_ns()
        scorer.self_test()
        times_ms.append((time.perf_counter_ns() - before_ns) / 1e6)
    return times_ms
