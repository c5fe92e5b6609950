"""What runs a graph of a bundle on this box: ONNX Runtime on the processor, or an engine by TensorRT on the GPU.

Both are loaded for parts one at a time, take the graph's inputs by name and answer in buffers of their own, which the
next run overwrites. There is nothing to keep either warm but running it: between parts the station scores a golden
input every 80 ms (`edge.services`). That this is often enough for the clocks of a GPU was never measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.errors import BeltlineError

Array = NDArray[Any]


class GraphError(BeltlineError):
    """The runtime cannot load the graph, the graph does not keep the contract, or it failed. The message says which."""


class Contract(NamedTuple):
    """What a graph takes and gives for one part, with a batch of one: arrays of the right shapes and dtypes, by name.

    They are there to be worked in by a runtime that can.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]  # `score` float32 [1] and `map` float32 [1, h, w]


class Runtime(Protocol):
    """One graph, loaded. Everything from the thread that made it."""

    name: str  # with its version, for people
    engine: str  # which one, "" where there is none

    def run(self, given: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score one part.

        Args:
            given: a value for each input of the contract, without the batch, or a number that fills it; more may be
                there.

        Returns:
            `score` float32 [1] and `map` float32 [1, h, w], good until the next run.

        Raises:
            GraphError: it failed.

        """

    def close(self) -> None:
        """Give everything back; a second time does nothing."""
