"""A CLIP is adapted on one labelled set and finds defects of another, by the command line."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from compile.adapt import AdaptWish, adapt
from compile.backbones import BackboneError
from compile.backbones.adapted import LEARNED, find_adapted
from compile.backbones.choice import find_backbone
from compile.backbones.clip import find_clip, load_clip
from compile.data import DataError
from compile.job import Settings
from compile.methods.adaclip import AdaCLIP
from compile.methods.adaclip_fit import tokens_of
from compile.methods.registry import UnknownMethodError, find_method
from compile.trunk_graph import map_names
from compile.wishes import WishError, check_wishes
from edge.cli import OK, main

SIDE = 128


@pytest.fixture(scope="module")
def made(photographs, clip, tmp_path_factory) -> Path:
    """What was learned from three good and three spoilt pictures, beside them."""
    folder = tmp_path_factory.mktemp("adapted")
    plate = folder / "steel-plate"
    for part in ("train/good", "test/good", "test/hole", "ground_truth/hole"):
        (plate / part).mkdir(parents=True)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    cv2.circle(mask, (40, 90), 14, 255, -1)
    for i, image in enumerate(photographs[:23]):
        cut = image[:SIDE, :SIDE]
        cv2.imwrite(str(plate / ("train" if i < 20 else "test") / "good" / f"{i}.png"), cut)
        if i >= 20:
            cv2.imwrite(str(plate / "test" / "hole" / f"{i}.png"), np.where(mask[..., None] > 0, np.uint8(5), cut))
            cv2.imwrite(str(plate / "ground_truth" / "hole" / f"{i}_mask.png"), mask)
    words = ["--clip", str(clip), "--size", str(SIDE), "--passes", "1", "--word", "brick wall", "--json"]
    assert main(["adapt", str(plate), "-o", str(folder / "made"), *words]) == OK
    return folder / "made"


@pytest.fixture
def adapted(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "adapted"))


@pytest.mark.slow
def test_from_labels_of_one_set_to_the_table_of_another(made, photographs, write, tmp_path, capsys):
    record = json.loads((made / "adapted.json").read_text())
    assert (record["auxiliary"], record["word"]) == (["steel-plate"], "brick wall")
    assert len(record["learned_from"]) == 6
    assert not [name for name in find_adapted(made).read_learned() if "tower" in name]

    clip = load_clip(find_clip(record["clip"]), SIDE)
    model, learned = AdaCLIP(clip), find_adapted(made).read_learned()
    model.load_state_dict({name: each for name, each in learned.items() if name != "table"}, strict=False)
    torch.testing.assert_close(model.reader(tokens_of(clip, ["brick wall"]))[0], learned["table"])

    for i, image in enumerate(photographs[:5]):
        part = "train/good" if i < 1 else "test/good" if i < 3 else "test/dark"
        write(tmp_path / "wall" / part / f"{i}.png", image // 2 if i >= 3 else image)
    wishes = ["--backbone", str(made), "--shots", "0", "-o", str(tmp_path / "out"), "--json"]
    assert main(["bench", str(tmp_path / "wall"), *wishes]) == OK
    rows = list(csv.DictReader((tmp_path / "out" / "bench.csv").read_text().splitlines()))
    assert {row["method"] for row in rows} == {"adaclip"}
    capsys.readouterr()
    assert main(["bench", str(made.parent / "steel-plate"), *wishes]) != OK
    assert "6 test pictures" in " ".join(capsys.readouterr().err.split())


def test_an_adapted_clip_is_a_backbone(adapted):
    backbone = find_backbone(str(adapted))
    assert backbone.title == "CLIP adapted by adaclip, 8 blocks of width 32"
    assert (backbone.usual_side, backbone.step) == (SIDE, 16)
    method = find_method("adaclip", backbone)
    assert method.levels == ((), (1,), (3,), (5,), (7,))
    assert map_names(method.levels)[:2] == ["maps_whole", "maps_1"]
    some = ((5,), ())
    third, whole = backbone.build(some, SIDE)(torch.full((1, SIDE, SIDE, 3), 9, dtype=torch.uint8))
    assert (whole.shape, third.shape) == ((1, 40, 1, 1), (1, 40, 8, 8))
    with pytest.raises(UnknownMethodError, match=r"is none\. There are: adaclip\."):
        find_method("varad", backbone)


def test_what_does_not_belong_together_is_refused(adapted, clip, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(clip, copy)
    record = json.loads((adapted / "adapted.json").read_text())
    (adapted / "adapted.json").write_text(json.dumps(record | {"clip": str(copy)}))
    assert find_adapted(adapted).clip.folder == copy
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BackboneError, match=r"was made with weights .* adapt again"):
        find_adapted(adapted)
    (adapted / "adapted.json").write_text(json.dumps(record | {"side": "128"}))
    with pytest.raises(BackboneError, match="side: Input should be a valid integer"):
        find_adapted(adapted)
    (adapted / "adapted.json").write_text(json.dumps(record | {"prompting": "image"}))
    with pytest.raises(BackboneError, match=r"eyes.dynamic.0.bias has shape None, wanted \(32,\). Adapt again"):
        find_backbone(str(adapted)).build((), SIDE)
    (adapted / LEARNED).write_bytes(b"no")
    with pytest.raises(BackboneError, match="cannot be read"):
        find_adapted(adapted).read_learned()


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"side": 100}, "--size 100: give a multiple of the patch, 16"),
        ({"passes": 0}, "--passes 0: at least 1"),
        ({"batch": 0}, "--batch 0: at least 1"),
        ({"seed": -1}, "--seed -1: give a whole number"),
        ({"word": " "}, "--word: say what will be inspected"),
    ],
)
def test_bad_wishes_are_named(clip, tmp_path, wish, words):
    with pytest.raises(WishError, match=words):
        adapt(replace(AdaptWish([tmp_path], str(clip), tmp_path / "x"), **wish))


def test_a_set_without_masks_teaches_nothing(mvtec, clip, tmp_path):
    shutil.rmtree(mvtec / "ground_truth")
    with pytest.raises(DataError, match="no test picture has a defect with a mask"):
        adapt(AdaptWish([mvtec], str(clip), tmp_path / "x", side=SIDE))


@pytest.fixture
def scans(tmp_path) -> Callable[[str, int], Path]:
    """Sets of rough surfaces of which some have a dent."""

    def made(name: str, good: int) -> Path:
        root = tmp_path / name
        y, x = np.mgrid[:64, :64] - 32.0
        for part, count in (("train/good", good), ("test/good", 2), ("test/dent", 2)):
            for folder in ("rgb", "xyz", "gt"):
                (root / part / folder).mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([len(name), len(part), i])
                dent = 20 * np.exp(-((x - 9) ** 2 + (y - rng.integers(-15, 15)) ** 2) / 40) * (part == "test/dent")
                z = 500 + cv2.GaussianBlur(rng.normal(0, 4, x.shape), (0, 0), 3) + dent
                cv2.imwrite(str(root / part / "xyz" / f"{i}.tiff"), np.stack([z, y, x], axis=2).astype(np.float32))
                grey = cv2.GaussianBlur(rng.normal(128, 400, x.shape), (0, 0), 4).clip(0, 255).astype(np.uint8)
                cv2.imwrite(str(root / part / "rgb" / f"{i}.png"), grey)
                cv2.imwrite(str(root / part / "gt" / f"{i}.png"), ((dent > 5) * 255).astype(np.uint8))
        return root

    return made


@pytest.mark.slow
def test_scans_of_one_set_teach_for_those_of_another(scans, clip, tmp_path, capsys):
    road, wood = scans("road", 20), scans("wood_board", 1)
    adapt(AdaptWish([road], str(clip), tmp_path / "adapted", method="mvp-pclip", word="wood board", passes=1))
    assert not [name for name in find_adapted(tmp_path / "adapted").read_learned() if "tower" in name]
    wishes = ["--backbone", str(tmp_path / "adapted"), "--size", "128", "--shots", "0", "--json"]
    assert main(["bench", str(wood), *wishes, "-o", str(tmp_path / "out")]) == OK
    rows = list(csv.DictReader((tmp_path / "out" / "bench.csv").read_text().splitlines()))
    assert {row["method"] for row in rows} == {"mvp-pclip"}
    with pytest.raises(WishError, match="has views of 224 pixels and one kind of prompts"):
        adapt(AdaptWish([road], str(clip), tmp_path / "x", method="mvp-pclip", dynamic=True))
    with pytest.raises(WishError, match="--method mvp-pclip: looks at views of scans, and no bundle carries views yet"):
        check_wishes(Settings(wood, tmp_path / "x.bundle", method="mvp-pclip"), find_backbone(wishes[1]))
