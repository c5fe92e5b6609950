"""The bookkeeping of the TensorRT runtime, with a stand-in for CUDA and TensorRT: no GPU takes part in this."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge.engine.flavour import TensorRT
from edge.scoring.tensorrt import Engine, GpuError

DRIVER = """
static int launched;
int cuStreamBeginCapture_v2(void *s, int mode) { return CAPTURES ? 0 : 900; }
int cuStreamEndCapture(void *s, void **graph) { *graph = (void *)1; return 0; }
int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) { *exec = (void *)2; return 0; }
int cuGraphDestroy(void *graph) { return graph != (void *)1; }
int cuGraphExecDestroy(void *exec) { launched = 0; return 0; }
int cuGraphLaunch(void *exec, void *s) { launched++; return exec != (void *)2 || s != (void *)77; }
int launches(void) { return launched; }
"""
SHAPES = {"image": (1, 4, 4, 3)}


class Cuda(ModuleType):
    """Stands in for pycuda.driver: memory is a number, copies keep what they were given, and all is written down."""

    class Error(Exception):
        pass

    class MemoryError(Error):  # noqa: A001 - pycuda's name
        pass

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.said: list[str] = []
        self.room = 10_000
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
        return SimpleNamespace(handle=77, synchronize=lambda: self.said.append("wait"))

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
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
                self.said.append(f"free {place}")

        return Memory()

    def memcpy_htod_async(self, to: Any, array: Any, stream: Any) -> None:
        self.on_gpu[int(to)] = array.copy()

    def memcpy_dtoh_async(self, array: Any, source: Any, stream: Any) -> None:
        array[...] = self.on_gpu[int(source)]


class Network:
    """Stands in for TensorRT: image uint8 in, score float32 out, which is the image's sum."""

    def __init__(self, cuda: Cuda, *, loads: bool = True, contexts: bool = True, starts: bool = True) -> None:
        self.cuda, self.loads, self.contexts, self.starts = cuda, loads, contexts, starts
        self.at: dict[str, int] = {}
        self.num_io_tensors = 2

    def api(self) -> Any:
        return SimpleNamespace(
            Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda _, level: None}),
            Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda _: self if self.loads else None),
            TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
            nptype=lambda kind: kind,
        )

    def get_tensor_name(self, index: int) -> str:
        return ("image", "score")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "image" else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        return np.uint8 if name == "image" else np.float32

    def create_execution_context(self) -> Any:
        return self if self.contexts else None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return shape[0] == 1

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return SHAPES["image"] if name == "image" else (1,)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.at[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        self.cuda.said.append("run")
        self.cuda.on_gpu[self.at["score"]] = np.float32(self.cuda.on_gpu[self.at["image"]].sum())
        return self.starts


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    stand_in = Cuda()
    package = ModuleType("pycuda")
    package.driver = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", stand_in)
    return stand_in


@pytest.fixture
def load(cuda: Cuda, tmp_path: Path) -> Callable[..., Engine]:
    def make(*, captures: int = 0, shapes: Any = SHAPES, **network: bool) -> Engine:
        source, driver = tmp_path / "cuda.c", tmp_path / "libcuda.so"
        source.write_text(DRIVER)
        subprocess.run(["cc", "-shared", "-fPIC", f"-DCAPTURES={captures}", source, "-o", driver], check=True)
        tensorrt = TensorRT("tensorrt", "10.3.0", Network(cuda, **network).api())
        return Engine(b"engine", tensorrt, shapes, str(driver))

    return make


def test_a_run_takes_the_inputs_there_and_the_outputs_back(load: Callable[..., Engine]) -> None:
    with load() as engine:
        assert not engine.captured
        for value in (1, 3):
            engine.inputs["image"].fill(value)
            engine.run()
            assert engine.outputs["score"][0] == value * 48


def test_everything_is_given_back_once_and_in_order(load: Callable[..., Engine], cuda: Cuda) -> None:
    engine = load()
    engine.close()
    engine.close()
    assert not engine.inputs
    assert not engine.outputs
    assert cuda.said == ["init", "push", "run", "wait", "free 1001", "free 1000", "pop", "detach"]


def test_a_captured_network_is_launched_as_a_whole(load: Callable[..., Engine], cuda: Cuda) -> None:
    with load(captures=1) as engine:
        assert engine.captured
        before = cuda.said.count("run")
        engine.run()
        engine.run()
        assert cuda.said.count("run") == before
        assert engine._graph._driver.launches() == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loads": False}, "TensorRT 10.3.0 does not load the engine, though its record fits"),
        ({"contexts": False}, "too little memory for the engine"),
        ({"starts": False}, "did not start the network"),
        ({"shapes": {"image": (2, 4, 4, 3)}}, r"does not take image of shape \(2, 4, 4, 3\)"),
        ({"shapes": {"scan": (1,)}}, r"has the inputs \['image'\], not \['scan'\]"),
    ],
)
def test_what_fails_is_said_and_given_back(
    options: dict[str, Any], said: str, load: Callable[..., Engine], cuda: Cuda
) -> None:
    with pytest.raises(GpuError, match=said):
        load(**options)
    assert cuda.said[-2:] == ["pop", "detach"]


def test_a_full_gpu_is_said_and_given_back(load: Callable[..., Engine], cuda: Cuda) -> None:
    cuda.room = 50  # the image alone
    with pytest.raises(GpuError, match=r"too little memory .*out of memory"):
        load()
    assert cuda.said[-3:] == ["free 1000", "pop", "detach"]


def test_a_failing_gpu_is_said(load: Callable[..., Engine], cuda: Cuda) -> None:
    def fail() -> None:
        raise cuda.Error("an illegal memory access was encountered")

    with load() as engine:
        engine._stream.synchronize = fail
        with pytest.raises(GpuError, match="the GPU failed: an illegal memory access"):
            engine.run()


def test_a_network_that_does_not_start_gives_no_old_answer(load: Callable[..., Engine]) -> None:
    with load() as engine:
        engine._network.starts = False
        with pytest.raises(GpuError, match="TensorRT did not start the network"):
            engine.run()


def test_without_pycuda_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(GpuError, match=r"pip install 'beltline\[jetson\]'"):
        Engine(b"", TensorRT("tensorrt", "10.3.0", None), SHAPES)
