"""Backbones by choice: what each takes, and a bundle on a vision transformer from its folder to the box."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compile.anomaly_graph import interpolation
from compile.backbones import BackboneError
from compile.backbones.choice import DEFAULT, find_backbone
from compile.half import render_half
from compile.image_size import choose_size
from compile.methods.method import Samples
from compile.methods.registry import METHODS, VIT_METHODS, UnknownMethodError, find_method
from compile.onnx_session import open_session
from compile.tensorrt_build import build, check_allowed
from compile.trunk_graph import export_trunk, map_names
from edge.bundle import read_bundle
from edge.cli import FAILED, OK, USAGE, main
from edge.scorer import Scorer


def test_the_embedded_ones_go_by_their_names():
    assert find_backbone("lite0") == DEFAULT
    lite2 = find_backbone("lite2")
    assert (lite2.title, lite2.step, lite2.cell, lite2.sides) == ("EfficientNet-Lite2", 32, 8, (128, 1024))
    assert lite2.build((8, 16), 128).channels == (48, 120)
    assert [each.map_side(side) for each in (DEFAULT, lite2) for side in (128, 1024)] == [64, 256, 64, 256]


def test_a_vision_transformer_takes_multiples_of_its_patch(vit: Path):
    backbone = find_backbone(str(vit))
    assert (backbone.step, backbone.cell, backbone.sides, backbone.map_side(140)) == (14, 14, (140, 1022), 256)
    assert backbone.title == "DINOv2 with registers, 12 blocks of width 64"
    assert find_method("inp-former", backbone).levels == ((2, 3, 4, 5), (6, 7, 8, 9))
    assert map_names(((2, 3, 4, 5), (6, 7, 8, 9))) == ["maps_2_3_4_5", "maps_6_7_8_9"]
    assert backbone.digest() == hashlib.sha256((vit / "model.safetensors").read_bytes()).hexdigest()
    found = choose_size(1024, backbone=backbone)
    assert (found.size, "14 px of the input" in found.explanation) == (392, True)  # INP-Former's own size
    assert choose_size(1024, smallest_defect_px=30, backbone=backbone).size == 490


def test_each_backbone_says_which_methods_it_takes(vit: Path):
    backbone = find_backbone(str(vit))
    for name in sorted(METHODS.keys() - VIT_METHODS.keys()):
        with pytest.raises(
            UnknownMethodError, match=r"is for an EfficientNet-Lite, and \S+ is none\. There are: patchcore, inp-f"
        ):
            find_method(name, backbone)
    with pytest.raises(UnknownMethodError, match="no method 'sam'"):
        find_method("sam", backbone)


def test_patches_have_their_centres_in_the_middle():
    assert interpolation(2, 4, 0.5).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]


def test_without_transformers_its_install_line_is_said(vit: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BackboneError, match=r"pip install 'beltline\[compile\]'"):
        find_backbone(str(vit))


@pytest.mark.parametrize(
    "wish",
    [
        (
            ["--backbone", "lite7"],
            FAILED,
            "--backbone: lite7: no such folder. Give one with config.json and safetensors",
        ),
        (["--size", "144"], USAGE, "--size 144: give a multiple of 14 from 140 to 1022"),
        (["--size", "1036"], USAGE, "--size 1036: give a multiple of 14 from 140 to 1022"),
        (["--method", "patchcore-32"], USAGE, "--method: method 'patchcore-32' is for an EfficientNet-Lite"),
    ],
)
@pytest.mark.parametrize("command", ["compile", "bench"])
def test_wishes_that_do_not_fit_are_said_before_anything_is_read(tmp_path: Path, vit: Path, capsys, command, wish):
    wishes, code, words = wish
    arguments = {"compile": ["-o", tmp_path / "x.bundle"], "bench": ["-o", tmp_path / "bench"]}[command]
    if command == "bench":
        words = words.replace("--method", "--methods")
        wishes = ["--methods" if each == "--method" else each for each in wishes]
    given = [command, tmp_path / "unread", *arguments, "--backbone", vit, *wishes, "--json"]
    assert main([str(each) for each in given]) == code
    told = json.loads(capsys.readouterr().out)["error"]
    assert words in " ".join(told.split())


def test_half_precision_is_in_the_products_alone(vit: Path, photographs):
    backbone = find_backbone(str(vit))
    model = export_trunk(backbone.build(backbone.groups(2), 140), 140)
    half = render_half(model)
    assert check_allowed(half) == []
    halves = {item.name for item in half.graph.initializer if item.data_type == TensorProto.FLOAT16}
    products = [node for node in half.graph.node if halves & set(node.input)]
    assert {node.op_type for node in products} == {"Conv", "MatMul"}
    assert len(products) == 1 + 10 * 6  # patches; q, k, v, out and two layers of ten blocks
    sizes = [sum(len(item.raw_data) for item in each.graph.initializer) for each in (half, model)]
    assert sizes[0] < 0.6 * sizes[1]
    picture = cv2.resize(photographs[0], (140, 140))[None]
    for a, b in zip(
        *(open_session(each, exact=True).run(None, {"image": picture}) for each in (half, model)), strict=True
    ):
        assert 0 < np.linalg.norm(a - b) / np.linalg.norm(b) < 5e-3


def test_a_weight_beyond_half_precision_is_named():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in "xy")
    weight = numpy_helper.from_array(np.full((1, 1), 7e4, np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    with pytest.raises(ValueError, match=r"w: a weight of 7e\+04 is too large"):
        render_half(helper.make_model(graph))


@pytest.mark.slow
def test_a_bundle_on_a_vision_transformer_runs_on_the_box_and_builds(mvtec: Path, vit: Path, tmp_path: Path, capsys):
    output = tmp_path / "wall.bundle"
    wishes = ["--size", "140", "--fit-steps", "20", "--target-false-reject", "0.1", "--group-by", r"(\d+)"]
    assert (
        main(
            [
                "compile",
                str(mvtec),
                "-o",
                str(output),
                "--json",
                "--method",
                "inp-former",
                "--backbone",
                str(vit),
                *wishes,
            ]
        )
        == OK
    )
    told = json.loads(capsys.readouterr().out)
    bundle = read_bundle(output)
    manifest = bundle.manifest
    assert manifest.method == "INP-Former: model, losses and map as published"
    assert manifest.provenance["backbone"].endswith("maps_2_3_4_5, maps_6_7_8_9, frozen")
    assert manifest.provenance["backbone_sha256"] == find_backbone(str(vit)).digest()
    assert (manifest.map_height, manifest.map_width) == (256, 256)
    assert {name: graph.precision[:7] for name, graph in manifest.graphs.items()} == {
        "float": "float32",
        "trt": "float16",
    }
    rows = {row["graph"]: row for row in told["parity"]["test"]}
    assert rows["torch"]["image_auroc"]["value"] == pytest.approx(rows["float"]["image_auroc"]["value"], abs=1e-9)
    assert told["parity"]["float"]["score_error_relative"] <= 1e-4
    image = cv2.cvtColor(cv2.imread(str(mvtec / "test" / "good" / "0.png")), cv2.COLOR_BGR2RGB)
    assert Scorer(bundle, "float").score(image).map.shape == (256, 256)
    for name in ("model.onnx", "model.trt.onnx"):
        model = onnx.load_from_string(bundle.read(name))
        assert check_allowed(model) == []
        assert len(build(model).engine) > 100_000


@pytest.mark.parametrize("name", sorted(VIT_METHODS))
def test_every_method_for_it_is_fitted_on_maps_of_one_grid(vit: Path, name):
    method = find_method(name, find_backbone(str(vit)))
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(20, 64, 10, 10)).astype(np.float32) for _ in method.levels]
    samples = Samples(maps, maps, np.ones((20, 35, 35), np.float32)) if method.painted else Samples(maps)
    head = method.head(method.fit(samples, 0, 20, None), maps, (256, 256))
    others = [torch.from_numpy(rng.normal(size=(3, 64, 10, 10)).astype(np.float32)) for _ in maps]
    score, heat = head(*others, torch.ones(3, 256, 256))
    assert (score.shape, heat.shape) == ((3,), (3, 256, 256))
    assert torch.isfinite(heat).all()
    assert float(heat.std()) > 0
