"""Run an engine: TensorRT with pycuda, which nothing else imports.

Everything is made once: the device's primary context, one stream, page-locked buffers on the host, their twins on the
GPU, TensorRT's execution context, and, where the driver can, a CUDA graph of copies and network together. A run is then
one launch and one wait. Everything is used from the thread that made it and is given back in the reverse order.

THIS HAS NEVER RUN ON A GPU. The order of its calls, its errors and its shutdown are tested with a stand-in driver, and
so is the station that scores with it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engine.flavour import TensorRT
from edge.engine.machine import DRIVER
from edge.scoring.cuda_graph import CudaGraph, capture
from edge.scoring.runtime import Array, Contract, GraphError

log = logging.getLogger(__name__)


class GpuError(GraphError):
    """The GPU cannot be used, has too little memory, refuses the engine, or failed. The message says which."""


class Engine:
    """An engine in the GPU's memory, at fixed shapes: see `edge.scoring.runtime.Runtime`.

    `inputs` and `outputs` are its page-locked arrays by name. Leave it as a context, or close it.
    """

    def __init__(self, engine: bytes, tensorrt: TensorRT, contract: Contract, driver: str = DRIVER) -> None:
        """Load an engine that `edge.engine.keep.check_engine` has let through.

        Args:
            engine: as TensorRT serialised it.
            tensorrt: the one that built it.
            contract: what the engine takes and gives; its arrays are not used.
            driver: the CUDA driver's library.

        Raises:
            GpuError: no pycuda, no GPU, too little memory, TensorRT refuses the engine, or it does not keep the
                contract.

        """
        try:
            import pycuda.driver as cuda  # noqa: PLC0415 - of the extra `jetson`, and needs a driver to load
        except ImportError as error:
            raise GpuError(f"pycuda cannot be used ({error}): pip install 'beltline[jetson]'.") from error
        self.name, self.engine = tensorrt.name, hashlib.sha256(engine).hexdigest()
        self._cuda = cuda
        self._failed = ""  # why it must not be used again
        self._graph: CudaGraph | None = None
        self._stream: Any = None
        self._kept: tuple[Any, ...] = ()
        self.inputs: dict[str, Array] = {}
        self.outputs: dict[str, Array] = {}
        self._on_gpu: dict[str, Any] = {}
        self._held = ExitStack()
        try:
            self._open(engine, tensorrt, contract, driver)
        except cuda.MemoryError as error:
            self.close()
            raise GpuError(
                f"the GPU has too little memory for the engine of {len(engine) / 1e6:.0f} MB ({error}). End what else "
                "uses it, or compile with a smaller --size."
            ) from error
        except cuda.Error as error:
            self.close()
            raise GpuError(f"CUDA: {error}. See to the driver; `beltline doctor` shows it.") from error
        except BaseException:
            self.close()
            raise

    @property
    def captured(self) -> bool:
        """Whether it runs as one CUDA graph."""
        return self._graph is not None

    def run(self, given: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Copy the inputs to the GPU, run the network, and copy the outputs back.

        Raises:
            GpuError: it failed, now or before: what CUDA and TensorRT hold is then of no use any more.

        """
        if self._failed:
            raise GpuError(self._failed)
        for name, array in self.inputs.items():
            array[0] = given[name]
        self.outputs["score"].fill(np.nan)  # an answer that never came is no answer
        try:
            started = self._graph.launch() if self._graph else self._enqueue()
            self._stream.synchronize()
        except self._cuda.Error as error:
            self._failed = f"failed on the GPU: {error}"
            raise GpuError(self._failed) from error
        if not started:
            self._failed = "failed: TensorRT did not start the network"
            raise GpuError(self._failed)
        return self.outputs["score"], self.outputs["map"]

    def close(self) -> None:
        """Give everything back; a second time does nothing."""
        self._graph = None
        try:
            self._held.close()
        except self._cuda.Error as error:  # a context that has failed takes nothing back
            log.warning("CUDA does not take back what the engine held: %s", error)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, engine: bytes, tensorrt: TensorRT, contract: Contract, driver: str) -> None:
        cuda, api = self._cuda, tensorrt.api
        cuda.init()
        context = cuda.Device(0).retain_primary_context()
        self._held.callback(context.detach)
        context.push()
        self._held.callback(context.pop)
        self._held.callback(self._let_go_of_buffers)
        self._stream = cuda.Stream()
        log_of_tensorrt = api.Logger(api.Logger.ERROR)
        runtime = api.Runtime(log_of_tensorrt)
        loaded = runtime.deserialize_cuda_engine(engine)
        if loaded is None:
            raise GpuError(
                f"{tensorrt.name} does not load the engine, though its record fits. Build it again: beltline engine "
                "build."
            )
        self._network = loaded.create_execution_context()
        if self._network is None:
            raise cuda.MemoryError("no execution context")
        self._held.callback(self._let_go)
        self._kept = (runtime, loaded, log_of_tensorrt)  # needed as long as the context
        self._bind(loaded, api, contract)
        self._run_once()
        self._graph = capture(self._stream.handle, self._enqueue, driver)
        if self._graph:
            self._held.callback(self._graph.close)

    def _bind(self, loaded: Any, api: Any, contract: Contract) -> None:
        names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
        taken = {name for name in names if loaded.get_tensor_mode(name) == api.TensorIOMode.INPUT}
        for what, found, expected in (
            ("inputs", taken, contract.inputs),
            ("outputs", set(names) - taken, contract.outputs),
        ):
            if found != set(expected):
                raise GpuError(f"the engine has the {what} {sorted(found)}, not {sorted(expected)}. Build it again.")
        for name, array in contract.inputs.items():
            if not self._network.set_input_shape(name, array.shape):
                raise GpuError(f"the engine does not take {name} of shape {array.shape}. Build it for that batch.")
        for name, array in {**contract.inputs, **contract.outputs}.items():
            shape = tuple(self._network.get_tensor_shape(name))
            dtype = np.dtype(api.nptype(loaded.get_tensor_dtype(name)))
            if (shape, dtype) != (array.shape, array.dtype):
                raise GpuError(
                    f"the engine has {name} as {dtype} {list(shape)}, expected {array.dtype} {list(array.shape)}. "
                    "Build it again."
                )
            locked = self._cuda.pagelocked_empty(shape, dtype)
            locked.fill(0)
            (self.inputs if name in taken else self.outputs)[name] = locked
            self._on_gpu[name] = memory = self._cuda.mem_alloc(locked.nbytes)
            self._held.callback(memory.free)
            self._network.set_tensor_address(name, int(memory))

    def _run_once(self) -> None:
        """TensorRT loads kernels at the first run, which must not happen while a graph is captured."""
        if not self._enqueue():
            raise GpuError("TensorRT did not start the network")
        self._stream.synchronize()

    def _enqueue(self) -> bool:
        for name, array in self.inputs.items():
            self._cuda.memcpy_htod_async(self._on_gpu[name], array, self._stream)
        started = bool(self._network.execute_async_v3(self._stream.handle))
        for name, array in self.outputs.items():
            self._cuda.memcpy_dtoh_async(array, self._on_gpu[name], self._stream)
        return started

    def _let_go_of_buffers(self) -> None:
        """Page-locked memory and the stream, too, go while the CUDA context is there."""
        self.inputs.clear()
        self.outputs.clear()
        self._on_gpu.clear()
        self._stream = None

    def _let_go(self) -> None:
        """TensorRT's objects go while the CUDA context is there, the execution context first."""
        self._network = None
        self._kept = ()
