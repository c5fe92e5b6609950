"""The bookkeeping of the TensorRT runtime, with a stand-in for CUDA and TensorRT: no GPU takes part in this."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.engine.flavour import TensorRT
from edge.scoring.runtime import Contract
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
CONTRACT = Contract(
    {"image": np.zeros((1, 4, 4, 3), np.uint8)},
    {"score": np.zeros(1, np.float32), "map": np.zeros((1, 2, 2), np.float32)},
)


def summed(given: dict[str, Any]) -> dict[str, Any]:
    """The score is the image's sum, and the map is full of it."""
    total = np.float32(given["image"].sum())
    return {"score": total[None], "map": np.full((1, 2, 2), total)}


def given(inputs: dict[str, Any]) -> dict[str, Contract]:
    return {"contract": CONTRACT._replace(inputs=inputs)}


@pytest.fixture
def network(make_network: Callable[..., Any]) -> Any:
    return make_network(CONTRACT, summed)


@pytest.fixture
def load(network: Any, tmp_path: Path) -> Callable[..., Engine]:
    def make(*, captures: int = 0, contract: Contract = CONTRACT, **changed: bool) -> Engine:
        source, driver = tmp_path / "cuda.c", tmp_path / "libcuda.so"
        source.write_text(DRIVER)
        subprocess.run(["cc", "-shared", "-fPIC", f"-DCAPTURES={captures}", source, "-o", driver], check=True)
        for name, value in changed.items():
            setattr(network, name, value)
        return Engine(b"engine", TensorRT("tensorrt", "10.3.0", network.api()), contract, str(driver))

    return make


def test_a_run_takes_the_inputs_there_and_the_outputs_back(load: Callable[..., Engine]) -> None:
    with load() as engine:
        assert not engine.captured
        for value in (1, 3):
            score, map_ = engine.run({"image": np.full((4, 4, 3), value, np.uint8), "mask": 1.0})
            assert (score.dtype, map_.dtype) == (np.float32, np.float32)
            assert score == value * 48
            assert (map_ == value * 48).all()


def test_everything_is_given_back_once_and_in_order(load: Callable[..., Engine], cuda: Any) -> None:
    engine = load()
    engine.close()
    engine.close()
    assert not engine.inputs
    assert not engine.outputs
    assert cuda.said == ["init", "push", "run", "wait", *(f"free {n}" for n in (1002, 1001, 1000)), "pop", "detach"]


def test_a_captured_network_is_launched_as_a_whole(load: Callable[..., Engine], cuda: Any) -> None:
    with load(captures=1) as engine:
        assert engine.captured
        before = cuda.said.count("run")
        engine.run({"image": 1})
        engine.run({"image": 1})
        assert cuda.said.count("run") == before
        assert engine._graph._driver.launches() == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loads": False}, "TensorRT 10.3.0 does not load the engine, though its record fits"),
        ({"contexts": False}, "too little memory for the engine"),
        ({"starts": False}, "did not start the network"),
        (given({"image": np.zeros((2, 4, 4, 3), np.uint8)}), r"does not take image of shape \(2, 4, 4, 3\)"),
        (given({"scan": np.zeros(1)}), r"has the inputs \['image'\], not \['scan'\]"),
        (given({"image": np.zeros((1, 4, 4, 3), np.int8)}), r"has image as uint8 \[1, 4, 4, 3\], expected int8"),
        (
            {"contract": CONTRACT._replace(outputs={**CONTRACT.outputs, "map": np.zeros((1, 3, 3), np.float32)})},
            r"has map as float32 \[1, 2, 2\], expected float32 \[1, 3, 3\]",
        ),
    ],
)
def test_what_fails_is_said_and_given_back(
    options: dict[str, Any], said: str, load: Callable[..., Engine], cuda: Any
) -> None:
    with pytest.raises(GpuError, match=said):
        load(**options)
    assert cuda.said[-2:] == ["pop", "detach"]


def test_a_full_gpu_is_said_and_given_back(load: Callable[..., Engine], cuda: Any) -> None:
    cuda.room = 50  # the image alone
    with pytest.raises(GpuError, match=r"too little memory .*out of memory"):
        load()
    assert cuda.said[-3:] == ["free 1000", "pop", "detach"]


def test_a_gpu_that_failed_is_not_asked_again(
    load: Callable[..., Engine], cuda: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with load() as engine:
        cuda.broken = True
        with pytest.raises(GpuError, match="failed on the GPU: an illegal memory access"):
            engine.run({"image": 1})
        runs = cuda.said.count("run")
        with pytest.raises(GpuError, match="failed on the GPU: an illegal memory access"):
            engine.run({"image": 1})
        assert cuda.said.count("run") == runs
    assert "CUDA does not take back what the engine held" in caplog.text
    assert cuda.said[-2:] == ["pop", "detach"]


def test_a_network_that_does_not_start_gives_no_old_answer(load: Callable[..., Engine]) -> None:
    with load() as engine:
        engine._network.starts = False
        with pytest.raises(GpuError, match="TensorRT did not start the network"):
            engine.run({"image": 1})


def test_without_pycuda_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(GpuError, match=r"pip install 'beltline\[jetson\]'"):
        Engine(b"", TensorRT("tensorrt", "10.3.0", None), CONTRACT)


def test_every_tensor_goes_where_its_name_says(load: Callable[..., Engine], network: Any) -> None:
    """The front end's tensors come in another order than the engine has them, and more of them than it takes."""
    shapes = {"mask": (1, 2, 2), "geometry": (1, 4, 3, 3), "scan": (1, 3, 3, 3)}
    inputs: dict[str, Any] = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    contract = given(inputs | {"class": np.zeros(1, np.int64)})["contract"]
    told: dict[str, Any] = {}

    def answer(seen: dict[str, Any]) -> dict[str, Any]:
        told.update(seen)
        return {"score": seen["scan"].max(axis=(1, 2, 3)), "map": seen["mask"]}

    network.contract, network.answer = contract, answer
    parts = {"scan": np.full((3, 3, 3), 7.0), "geometry": np.full((4, 3, 3), 2.0), "image": 9}
    with load(contract=contract) as engine:
        score, map_ = engine.run({"class": 3, "mask": 1.0, **parts})
        assert score == 7
        assert (map_ == 1).all()
    assert {name: array.flat[0] for name, array in told.items()} == {"scan": 7, "geometry": 2, "mask": 1, "class": 3}
    assert {name: array.dtype for name, array in told.items()} == {
        **dict.fromkeys(shapes, np.float32),
        "class": np.int64,
    }
