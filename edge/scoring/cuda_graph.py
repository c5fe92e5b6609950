"""What a stream does, captured once and launched as a whole: one call in place of hundreds of kernel launches.

pycuda has no CUDA graphs that we know of, so the driver is called through `ctypes`. Where it refuses (a network that
cannot be captured, a driver before CUDA 11.4) there is no graph, and the work is done call by call as before.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from contextlib import suppress

from edge.engine.machine import DRIVER

log = logging.getLogger(__name__)

THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on using CUDA


class CudaGraph:
    """A captured graph, ready to be launched on the stream it was captured from."""

    def __init__(self, driver: ctypes.CDLL, stream: ctypes.c_void_p, runnable: ctypes.c_void_p) -> None:
        self._driver, self._stream, self._runnable = driver, stream, runnable

    def launch(self) -> bool:
        """Start the work; False when the driver refuses."""
        return bool(self._driver.cuGraphLaunch(self._runnable, self._stream) == 0)

    def close(self) -> None:
        self._driver.cuGraphExecDestroy(self._runnable)


def capture(stream: int, work: Callable[[], bool], driver: str = DRIVER) -> CudaGraph | None:
    """Capture what `work` does on a stream, by its handle; None where that cannot be done."""
    cuda = ctypes.CDLL(driver)
    handle, graph, runnable = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
    if cuda.cuStreamBeginCapture_v2(handle, THREAD_LOCAL) != 0:
        return None
    captured = False
    try:
        captured = work()
    finally:
        ended = cuda.cuStreamEndCapture(handle, ctypes.byref(graph))
    if not captured or ended != 0 or not graph:
        log.info("the network cannot be captured as a CUDA graph; it runs call by call")
        return None
    try:
        with suppress(AttributeError):  # a driver before CUDA 11.4
            if cuda.cuGraphInstantiateWithFlags(ctypes.byref(runnable), graph, ctypes.c_ulonglong(0)) == 0:
                return CudaGraph(cuda, handle, runnable)
        return None
    finally:
        cuda.cuGraphDestroy(graph)
