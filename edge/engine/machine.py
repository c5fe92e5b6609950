"""The GPU of this machine and what drives it, as far as engines depend on it; asked of the CUDA driver alone.

`libcuda` belongs to the driver and is there wherever a GPU can be used, so this needs no CUDA toolkit and no package.
It makes no context and takes no GPU memory.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict

DRIVER = "libcuda.so.1"
TEGRA = Path("/etc/nv_tegra_release")
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
NAME_BYTES = 256


class Machine(BaseModel):
    """What an engine fits: one GPU under one driver."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    gpu: str  # "Orin", "NVIDIA GeForce RTX 3060"
    compute_capability: str  # "8.7"
    cuda: str  # the newest that the driver takes, "12.6"
    l4t: str | None = None  # of a Jetson, "36.4.0"


def this_machine(driver: str = DRIVER, tegra: Path = TEGRA) -> Machine | None:
    """The first GPU of this machine; None where there is none, or none that its driver can use."""
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return None
    count, version, major, minor = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(NAME_BYTES)
    device = ctypes.c_int()
    steps = (
        ("cuInit", (0,)),
        ("cuDriverGetVersion", (ctypes.byref(version),)),
        ("cuDeviceGetCount", (ctypes.byref(count),)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDeviceGetName", (name, NAME_BYTES, device)),
        ("cuDeviceGetAttribute", (ctypes.byref(major), MAJOR, device)),
        ("cuDeviceGetAttribute", (ctypes.byref(minor), MINOR, device)),
    )
    for function, arguments in steps:
        if getattr(cuda, function)(*arguments) != 0:
            return None
    return Machine(
        gpu=name.value.decode("utf-8", "replace"),
        compute_capability=f"{major.value}.{minor.value}",
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        l4t=l4t(tegra),
    )


def l4t(tegra: Path = TEGRA) -> str | None:
    """The release of Linux for Tegra: "# R36 (release), REVISION: 4.0, ..." is 36.4.0."""
    try:
        found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", tegra.read_text(encoding="utf-8"))
    except OSError:
        return None
    return f"{found[1]}.{found[2]}" if found else None
