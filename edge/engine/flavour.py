"""Which TensorRT is here: TensorRT (10.3 comes with JetPack 6; 11 from the package index), or TensorRT-RTX.

Both have the same Python API for what is used of them here. They differ in what they build for: TensorRT for the GPU
that it runs on, TensorRT-RTX for named compute capabilities too, on a machine without a GPU.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from edge.errors import BeltlineError

Flavour = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


class TensorRTError(BeltlineError):
    """TensorRT refuses the graph, or is not of a kind that can do what was asked. The message names the reason."""


class NoTensorRTError(TensorRTError):
    """No TensorRT is installed here."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class TensorRT:
    """An installed TensorRT."""

    flavour: Flavour
    version: str  # of four numbers; engines fit one version alone
    api: Any  # the Python module

    @property
    def name(self) -> str:
        return f"{'TensorRT' if self.flavour == 'tensorrt' else 'TensorRT-RTX'} {self.version}"


def find(*flavours: Flavour) -> TensorRT | None:
    """The first of these flavours that is installed; TensorRT before TensorRT-RTX where none is named."""
    for flavour in flavours or tuple(MODULES):
        try:
            api = importlib.import_module(MODULES[flavour])
        except (ImportError, OSError):  # OSError: its libraries are not there
            continue
        return TensorRT(flavour, str(api.__version__), api)
    return None


def require(*flavours: Flavour) -> TensorRT:
    """The same, where there must be one.

    Raises:
        NoTensorRTError: there is none.

    """
    if found := find(*flavours):
        return found
    if "tensorrt" in (flavours or MODULES):
        raise NoTensorRTError(
            "TensorRT is not installed. On a Jetson it comes with JetPack: make the environment with "
            "--system-site-packages. On a PC: pip install tensorrt, or tensorrt-rtx-cu12."
        )
    raise NoTensorRTError("TensorRT-RTX is not installed: pip install tensorrt-rtx-cu12")
