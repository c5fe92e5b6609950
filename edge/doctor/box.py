"""What the box itself has and lacks: packages, processor, GPU, devices, rights, system."""

from __future__ import annotations

import grp
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from edge.doctor.finding import Finding
from edge.engine.flavour import find
from edge.engine.machine import TEGRA, this_machine
from edge.speed import processor_name

ENOUGH_DISK_BYTES = 2 * 10**9
OLDEST_SYSTEMD = 249
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
