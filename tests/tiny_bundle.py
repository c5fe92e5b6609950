"""A tiny real bundle: its graph keeps the contract and scores how far the picture's brightest spot is from grey."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
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

from edge.bundle import Golden, GoldenSet, Graph, Input, Manifest, Source, Threshold

SIZE, MAP = 64, 16
WEIGHTS = np.array([0.6, 0.3, 0.1], np.float32)  # unequal: RGB and BGR score differently


MIDDLES = (128, 64, 200)  # grey of a good part of each class


def tiny_graph(gain: float = 1.0, classes: int = 0) -> bytes:
    """Image uint8 [B,64,64,3], mask float32 [B,16,16] -> map = |grey - 128| / 128 * gain, score = its maximum.

    With classes it has the input `class`, int64 [B], and a grey of its own for each.
    """
    constants = {
        "weights": WEIGHTS.reshape(3, 1),
        **(
            {"middles": np.array(MIDDLES[:classes], np.float32).reshape(-1, 1, 1, 1)}
            if classes
            else {"middle": np.float32(128)}
        ),
        "scale": np.float32(gain / 128),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        *([helper.make_node("Gather", ["middles", "class"], ["middle"])] if classes else []),
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "weights"], ["grey"]),
        helper.make_node("Transpose", ["grey"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["nchw"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Sub", ["pooled", "middle"], ["centred"]),
        helper.make_node("Abs", ["centred"], ["distance"]),
        helper.make_node("Mul", ["distance", "scale"], ["scaled"]),
        helper.make_node("Squeeze", ["scaled", "axis"], ["unmasked"]),
        helper.make_node("Mul", ["unmasked", "mask"], ["map"]),
        helper.make_node("ReduceMax", ["map"], ["score"], axes=[1, 2], keepdims=0),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            info("image", TensorProto.UINT8, ["B", SIZE, SIZE, 3]),
            info("mask", TensorProto.FLOAT, ["B", MAP, MAP]),
            *([info("class", TensorProto.INT64, ["B"])] if classes else []),
        ],
        [info("score", TensorProto.FLOAT, ["B"]), info("map", TensorProto.FLOAT, ["B", MAP, MAP])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def tiny_map(picture: NDArray[np.uint8], class_index: int = 0) -> NDArray[np.float32]:
    """What the graph answers, without the graph."""
    grey = picture.astype(np.float32) @ WEIGHTS
    pooled = grey.reshape(MAP, 4, MAP, 4).mean(axis=(1, 3))
    result: NDArray[np.float32] = np.abs(pooled - MIDDLES[class_index]) / np.float32(128)
    return result


def golden_picture() -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(60, 200, (SIZE, SIZE, 3)).astype(np.uint8)


def saved(array: NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def bundle_files(
    *,
    graphs: dict[str, bytes] | None = None,
    threshold: float = 0.5,
    trt_threshold: float | None = None,
    source: Source | None = None,
    golden_shift: float = 0.0,
    classes: list[str] | None = None,
    change: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, bytes]:
    """The files of a valid bundle. `change` edits the manifest before it is hashed.

    With classes it is one for several: the threshold of the i-th is `threshold + i`. `trt_threshold` is for a graph for
    TensorRT that has another.
    """
    classes = classes or []
    graphs = graphs or {"float": tiny_graph(classes=len(classes))}
    names = {"float": "model.onnx", "int8": "model.int8.onnx", "trt": "model.trt.onnx"}
    picture = golden_picture()
    expected = [tiny_map(picture, i) for i in range(max(1, len(classes)))]
    golden = [
        Golden(
            image="golden/0.png",
            scores=dict.fromkeys(graphs, float(each.max()) + golden_shift),
            maps=dict.fromkeys(graphs, f"golden/{i}.npy"),
            score_tolerance=dict.fromkeys(graphs, 1e-3),
            map_tolerance=dict.fromkeys(graphs, 1e-3),
            class_name=classes[i] if classes else "",
        )
        for i, each in enumerate(expected)
    ]
    entry = Threshold(
        value=0.5, target_false_reject=0.01, rule="rank 100 of 100", parts=100, interval=(0.001, 0.03)
    ).model_dump()
    own = {"trt": threshold if trt_threshold is None else trt_threshold}
    thresholds = [
        {name: entry | {"value": own.get(name, threshold) + i} for name in graphs} for i in range(max(1, len(classes)))
    ]
    files = {names[name]: graph for name, graph in graphs.items()} | {
        "threshold.json": json.dumps(
            dict(zip(classes, thresholds, strict=True)) if classes else thresholds[0]
        ).encode(),
        "golden/golden.json": GoldenSet(samples=golden).model_dump_json().encode(),
        "golden/0.png": cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes(),
        **{f"golden/{i}.npy": saved(each) for i, each in enumerate(expected)},
        "parity.json": b"{}",
        "report.html": b"<!doctype html>",
    }
    manifest = Manifest(
        name="tiny",
        version="1",
        method="distance from grey",
        created="2026-01-01T00:00:00Z",
        input=Input(height=SIZE, width=SIZE, source=source or Source(height=(32, 256), width=(32, 256), channels=3)),
        map_height=MAP,
        map_width=MAP,
        score="maximum",
        graphs={
            name: Graph(file=names[name], precision=name, runtime="tensorrt" if name == "trt" else "onnxruntime")
            for name in graphs
        },
        schema_version=2 if classes else 1,
        classes=classes,
        class_input=bool(classes),
        provenance={},
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    ).model_dump(mode="json")
    change(manifest)
    text = json.dumps(manifest).encode()
    return files | {"manifest.json": text, "manifest.sha256": hashlib.sha256(text).hexdigest().encode() + b"\n"}


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def part_picture(brightness: int, seed: int = 0, size: int = SIZE) -> NDArray[np.uint8]:
    """A picture with texture around a brightness: 128 is good, 255 is defective."""
    noise = np.random.default_rng(seed).integers(-10, 11, (size, size, 3))
    return np.clip(noise + brightness, 0, 255).astype(np.uint8)


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Writes a bundle and returns its path: `make_bundle(threshold=0.3)`, see `bundle_files`."""

    def make(name: str = "tiny.bundle", **options: Any) -> Path:
        return write_archive(tmp_path / name, bundle_files(**options))

    return make


@pytest.fixture
def tiny() -> Any:
    """The functions of this module, for tests that need more than a bundle."""
    return types.SimpleNamespace(
        SIZE=SIZE,
        graph=tiny_graph,
        map=tiny_map,
        golden=golden_picture,
        files=bundle_files,
        archive=write_archive,
        folder=write_folder,
        picture=part_picture,
    )


@pytest.fixture
def make_parts(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of pictures, one per brightness."""

    def make(*brightness: int, name: str = "parts") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number, value in enumerate(brightness):
            picture = cv2.cvtColor(part_picture(value, number), cv2.COLOR_RGB2BGR)
            assert cv2.imwrite(str(folder / f"{number:03d}.png"), picture)
        return folder

    return make
