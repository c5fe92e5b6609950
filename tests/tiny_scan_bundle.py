"""A tiny real bundle that looks at scans: its graph scores how high a part stands above the belt, mm."""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edge.bundle import (
    Golden,
    GoldenSet,
    Graph,
    Input,
    Manifest,
    ScanInput,
    ScanSource,
    Source,
    Spec,
    Tensor,
    Threshold,
)
from edge.prepare import prepare
from tests.tiny_bundle import golden_picture, saved, write_archive

GRID, MAP, POOL = 64, 16, 4
HEIGHT, WIDTH = 96, 128
HIGHEST = 20.0  # mm; what stands higher is rejected
SCAN = ScanInput(
    height=GRID,
    width=GRID,
    background="belt",
    source=ScanSource(height=(HEIGHT, HEIGHT), width=(WIDTH, WIDTH), unit="m", distance_mm=(390, 400)),
)
IMAGE = Input(height=GRID, width=GRID, source=Source(height=(HEIGHT, HEIGHT), width=(WIDTH, WIDTH), channels=1))


def block_scan(
    *heights: float, seed: int = 0, x_mm: float = 0.0, bump_mm: float = 0.0, missing: float = 0.01
) -> NDArray[np.float32]:
    """Blocks side by side on a belt 400 mm away, float32 [96, 128, 3] in metres; a bump of 8 mm on the first."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH] - np.array([HEIGHT, WIDTH])[:, None, None] / 2
    z = 400 + rng.normal(0, 0.05, x.shape)
    for number, height in enumerate(heights):
        middle = x_mm + 60 * (number - (len(heights) - 1) / 2)
        z -= height * ((np.abs(x - middle) < 22) & (np.abs(y) < 30))
        z -= bump_mm * (number == 0) * (np.hypot(x - middle - 10, y - 10) < 4)
    points = np.stack([x, y, z], axis=2).astype(np.float32) / 1000
    points[rng.random(x.shape) < missing] = np.nan
    return points


def scan_graph(*, image: bool) -> bytes:
    """Geometry [B,7,64,64], mask [B,16,16] -> map = height averaged over 4x4, times the mask; score = its maximum."""
    constants = {"zero": np.array([0], np.int64), "one": np.array([1], np.int64), "axis": np.array([1], np.int64)}
    nodes = [
        helper.make_node("Slice", ["geometry", "zero", "one", "axis"], ["height"]),
        helper.make_node("AveragePool", ["height"], ["pooled"], kernel_shape=[POOL, POOL], strides=[POOL, POOL]),
        helper.make_node("Squeeze", ["pooled", "axis"], ["unmasked"]),
        helper.make_node("Mul", ["unmasked", "mask"], ["map"]),
        helper.make_node("ReduceMax", ["map"], ["score"], axes=[1, 2], keepdims=0),
    ]
    info = helper.make_tensor_value_info
    inputs = [
        info("geometry", TensorProto.FLOAT, ["B", 7, GRID, GRID]),
        info("mask", TensorProto.FLOAT, ["B", MAP, MAP]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [*([info("image", TensorProto.UINT8, ["B", GRID, GRID, 3])] if image else []), *inputs],
        [info("score", TensorProto.FLOAT, ["B"]), info("map", TensorProto.FLOAT, ["B", MAP, MAP])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def scan_spec(*, image: bool = False) -> Spec:
    tensors = (Tensor(name="geometry", shape=[7, GRID, GRID]),)
    return Spec(IMAGE if image else None, SCAN, tensors, (MAP, MAP))


def scan_bundle_files(
    *, image: bool = False, change: Callable[[dict[str, Any], dict[str, Any]], None] = lambda *_: None
) -> dict[str, bytes]:
    """The files of a valid bundle. `change` edits manifest and golden set before they are hashed."""
    spec = scan_spec(image=image)
    ready = prepare(golden_picture()[:, :, 0] if image else None, block_scan(10) * 1000, spec._replace(image=None))
    heat = ready.tensors["geometry"][0].reshape(MAP, POOL, MAP, POOL).mean((1, 3)) * ready.tensors["mask"]
    golden = Golden(
        image="golden/0.png" if image else "",
        tensors={name: f"golden/0.{name}.npy" for name in ("geometry", "mask")},
        scores={"float": float(heat.max())},
        maps={"float": "golden/0.float.npy"},
        score_tolerance={"float": 1e-3},
        map_tolerance={"float": 1e-3},
    )
    threshold = Threshold(value=HIGHEST, target_false_reject=0.01, rule="stated", parts=100, interval=(0.001, 0.03))
    manifest = Manifest(
        schema_version=3,
        name="blocks",
        version="1",
        method="height",
        created="2026-01-01T00:00:00Z",
        input=spec.image,
        scan=spec.scan,
        tensors=list(spec.tensors),
        map_height=MAP,
        map_width=MAP,
        score="maximum",
        graphs={"float": Graph(file="model.onnx", precision="float32", runtime="onnxruntime")},
        provenance={},
        files={},
    ).model_dump(mode="json")
    samples = GoldenSet(samples=[golden]).model_dump(mode="json")
    change(manifest, samples["samples"][0])
    files = {
        "model.onnx": scan_graph(image=image),
        "threshold.json": json.dumps({"float": threshold.model_dump()}).encode(),
        "golden/golden.json": json.dumps(samples).encode(),
        "golden/0.float.npy": saved(heat),
        **{f"golden/0.{name}.npy": saved(np.ascontiguousarray(ready.tensors[name])) for name in ("geometry", "mask")},
        **({"golden/0.png": cv2.imencode(".png", golden_picture())[1].tobytes()} if image else {}),
    }
    manifest["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    text = json.dumps(manifest).encode()
    return files | {"manifest.json": text, "manifest.sha256": hashlib.sha256(text).hexdigest().encode() + b"\n"}


@pytest.fixture
def make_scan_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Writes a bundle and returns its path, see `scan_bundle_files`."""
    return lambda **options: write_archive(tmp_path / "blocks.bundle", scan_bundle_files(**options))


@pytest.fixture
def blocks() -> Any:
    """The functions of this module, for tests that need more than a bundle."""
    return types.SimpleNamespace(scan=block_scan, spec=scan_spec, MAP=MAP, HEIGHT=HEIGHT, WIDTH=WIDTH)
