"""A stand-in for a GPU: CUDA as pycuda has it, and TensorRT with an engine for the tiny bundle. Nothing here computes
on a GPU, and nothing that is tested with it says that one would."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.engine.build import Built
from edge.engine.flavour import TensorRT
from edge.engine.machine import Machine
from edge.scoring.runtime import Contract

ORIN = Machine(gpu="Orin", compute_capability="8.7", cuda="12.6", l4t="36.4.0")
Array = NDArray[Any]


class Cuda(ModuleType):
    """Stands in for pycuda.driver: memory is a number, copies keep what they were given, and all is written down."""

    class Error(Exception):
        pass

    class MemoryError(Error):  # noqa: A001 - pycuda's name
        pass

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.said: list[str] = []
        self.room = 100_000
        self.broken = False  # as after an illegal memory access: nothing works any more
        self.on_gpu: dict[int, Any] = {}

    def init(self) -> None:
        self.said.append("init")

    def Device(self, number: int) -> Any:  # noqa: N802
        context = SimpleNamespace(
            push=lambda: self.said.append("push"),
            pop=lambda: self.said.append("pop"),
            detach=lambda: self.said.append("detach"),
        )
        return SimpleNamespace(retain_primary_context=lambda: context)

    def Stream(self) -> Any:  # noqa: N802
        return SimpleNamespace(handle=77, synchronize=lambda: self._say("wait"))

    def _say(self, what: str) -> None:
        if self.broken:
            raise self.Error("an illegal memory access was encountered")
        self.said.append(what)

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return np.empty(shape, dtype)

    def mem_alloc(self, size: int) -> Any:
        if size > self.room:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        self.room -= size
        place = 1000 + len(self.on_gpu)
        self.on_gpu[place] = None

        class Memory:
            __int__ = __index__ = lambda _: place

            def free(_) -> None:  # noqa: N805
                self._say(f"free {place}")
                self.room += size

        return Memory()

    def memcpy_htod_async(self, to: Any, array: Array, stream: Any) -> None:
        self.on_gpu[int(to)] = array.copy()

    def memcpy_dtoh_async(self, array: Array, source: Any, stream: Any) -> None:
        array[...] = self.on_gpu[int(source)]


class Network:
    """Stands in for TensorRT with one engine: `answer` turns its inputs into its outputs."""

    def __init__(
        self, cuda: Cuda, contract: Contract, answer: Callable[[Mapping[str, Array]], dict[str, Array]]
    ) -> None:
        self.cuda, self.contract, self.answer = cuda, contract, answer
        self.loads = self.contexts = self.starts = True
        self.at: dict[str, int] = {}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def _tensors(self) -> dict[str, Array]:
        return {**self.contract.inputs, **self.contract.outputs}

    def api(self) -> Any:
        return SimpleNamespace(
            Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda _, level: None}),
            Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda _: self if self.loads else None),
            TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
            nptype=lambda kind: kind,
        )

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self.contract.inputs else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name].dtype

    def create_execution_context(self) -> Any:
        return self if self.contexts else None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return shape[0] == 1

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.at[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        self.cuda.said.append("run")
        given = {name: self.cuda.on_gpu[self.at[name]] for name in self.contract.inputs}
        for name, array in self.answer(given).items():
            self.cuda.on_gpu[self.at[name]] = array
        return self.starts


class Box:
    """A box with a GPU, as far as beltline can tell; its engine answers `gain` times what the tiny graph does."""

    def __init__(self, cuda: Cuda, tiny: Any) -> None:
        self.cuda, self.version, self.gain, self.plan = cuda, "10.3.0.26", 1.0, b"engine"
        size, map_size = tiny.SIZE, tiny.SIZE // 4
        contract = Contract(
            {"image": np.zeros((1, size, size, 3), np.uint8), "mask": np.zeros((1, map_size, map_size), np.float32)},
            {"score": np.zeros(1, np.float32), "map": np.zeros((1, map_size, map_size), np.float32)},
        )

        def answer(given: Mapping[str, Array]) -> dict[str, Array]:
            found = tiny.map(given["image"][0]) * given["mask"][0] * np.float32(self.gain)
            return {"score": found.max()[None], "map": found[None]}

        self.network = Network(cuda, contract, answer)

    def tensorrt(self, *_: str) -> TensorRT:
        return TensorRT("tensorrt", self.version, self.network.api())

    def build(self, *_: Any, **__: Any) -> Built:
        return Built(self.plan, {}, ["8.7"], 1.0, b"")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """Stands in for pycuda."""
    stand_in = Cuda()
    package = ModuleType("pycuda")
    package.driver = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", stand_in)
    return stand_in


@pytest.fixture
def make_network(cuda: Cuda) -> Callable[..., Network]:
    """Makes stand-ins for TensorRT with an engine: `make_network(contract, answer)`."""
    return lambda contract, answer: Network(cuda, contract, answer)


@pytest.fixture
def gpu_box(cuda: Cuda, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Box:
    """Lets beltline find a GPU and TensorRT, and build engines in no time."""
    box = Box(cuda, tiny)
    for module in ("edge.engine.keep", "edge.doctor.bundle", "edge.doctor.box"):
        monkeypatch.setattr(f"{module}.this_machine", lambda: ORIN)
        monkeypatch.setattr(f"{module}.find", box.tensorrt)
    monkeypatch.setattr("edge.engine.keep.build", box.build)
    monkeypatch.setattr("edge.scoring.tensorrt.capture", lambda *_: None)
    return box
