"""A graph on the processor, by ONNX Runtime: its buffers are bound once and reused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edge.scoring.runtime import Array, Contract, GraphError

PROVIDER = "CPUExecutionProvider"
ORT_ERRORS = tuple(
    getattr(ort_errors, name)
    for name in (
        *("Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf"),
        *("ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail"),
    )
)


class OnnxRuntime:
    """See `edge.scoring.runtime.Runtime`."""

    name = f"ONNX Runtime {ort.__version__}"
    engine = ""

    def __init__(self, graph: bytes, contract: Contract, threads: int) -> None:
        """Load a serialised ONNX graph for so many threads of the processor.

        Raises:
            GraphError: it cannot be loaded, or does not keep the contract.

        """
        self._inputs = contract.inputs
        self._score, self._map = contract.outputs["score"], contract.outputs["map"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(graph, options, providers=[PROVIDER])
        except ORT_ERRORS as error:
            raise GraphError(f"cannot be loaded by ONNX Runtime: {error}") from error
        if (found := self._session.get_providers()) != [PROVIDER]:
            raise GraphError(f"would run on {found}, expected {PROVIDER} alone")
        _check("input", self._session.get_inputs(), contract.inputs)
        _check("output", self._session.get_outputs(), contract.outputs)
        self._binding = self._session.io_binding()
        for name, array in contract.inputs.items():
            self._binding.bind_cpu_input(name, array)
        for name, array in contract.outputs.items():
            self._binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def run(self, given: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        for name, buffer in self._inputs.items():
            buffer[0] = given[name]
        self._score.fill(np.nan)  # an answer that never came is no answer
        try:
            self._session.run_with_iobinding(self._binding)
        except ORT_ERRORS as error:
            raise GraphError(f"failed: {error}") from error
        return self._score, self._map

    def close(self) -> None:
        """The processor's memory goes with the object."""


def _check(what: str, tensors: list[ort.NodeArg], expected: dict[str, Array]) -> None:
    if (found := sorted(tensor.name for tensor in tensors)) != sorted(expected):
        raise GraphError(f"has the {what}s {found}, not {sorted(expected)}")
    types = {"uint8": "tensor(uint8)", "float32": "tensor(float)", "int64": "tensor(int64)"}
    for tensor in tensors:
        array = expected[tensor.name]
        fits = len(tensor.shape) == array.ndim and all(
            not isinstance(a, int) or a == b for a, b in zip(tensor.shape, array.shape, strict=False)
        )
        if not fits or tensor.type != types[str(array.dtype)]:
            raise GraphError(
                f"has the {what} '{tensor.name}' as {tensor.type} {tensor.shape}; expected "
                f"{types[str(array.dtype)]} {list(array.shape)}"
            )
