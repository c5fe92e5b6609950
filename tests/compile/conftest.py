"""Real pictures for the workshop's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import transformers
from numpy.typing import NDArray
from skimage import data
from torch import Tensor

from benchmarks.tiny_clip import write_tiny_clip
from compile.anomaly_graph import AnomalyHead
from compile.backbone import Trunk
from compile.export import export
from compile.job import Settings
from compile.onnx_session import open_session
from compile.pipeline import Compiled, compile_data
from compile.tensorrt_build import build, check_allowed
from compile.trunk_graph import export_trunk

SIDE = 144
SCAN_SIDE, GOOD_SCANS = 128, 21


@pytest.fixture(scope="session")
def photographs() -> NDArray[np.uint8]:
    """40 pieces uint8 [144, 144, 3] RGB of a photographed wall, tinted so that a swapped channel order shows."""
    surface = data.brick()
    rng = np.random.default_rng(5)
    cells = [(y, x) for y in range(0, 512 - SIDE, 56) for x in range(0, 512 - SIDE, 56)][:40]
    cuts = [surface[y : y + SIDE, x : x + SIDE].astype(np.float32) for y, x in cells]
    lit = [cut * rng.uniform(0.95, 1.05) + rng.normal(0, 1.5, cut.shape) for cut in cuts]
    return np.stack([np.clip(each[..., None] * (1.0, 0.8, 0.6), 0, 255).astype(np.uint8) for each in lit])


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rough surface; defects are dents that no picture shows."""
    root = tmp_path_factory.mktemp("scans") / "road"
    y, x = np.mgrid[:SCAN_SIDE, :SCAN_SIDE] - SCAN_SIDE / 2
    for part, count in (("train/good", GOOD_SCANS), ("test/good", 6), ("test/dent", 6)):
        for folder in ("rgb", "xyz", "gt"):
            (root / part / folder).mkdir(parents=True)
        for i in range(count):
            rng = np.random.default_rng(1000 * len(part) + i)
            dent = 20 * np.exp(-((x - 20) ** 2 + (y - rng.integers(-30, 30)) ** 2) / 80) * (part == "test/dent")
            z = 500 + cv2.GaussianBlur(rng.normal(0, 4, x.shape), (0, 0), 3) + dent
            name = root / part / "xyz" / f"{i}.tiff"
            assert cv2.imwrite(str(name), np.stack([z, y, x], axis=2).astype(np.float32))
            grey = cv2.GaussianBlur(rng.normal(128, 400, x.shape), (0, 0), 4).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(root / part / "rgb" / f"{i}.png"), grey)
            cv2.imwrite(str(root / part / "gt" / f"{i}.png"), ((dent > 5) * 255).astype(np.uint8))
    return root


@pytest.fixture
def write() -> Callable[[Path, NDArray[np.uint8] | NDArray[np.uint16]], Path]:
    """Write a picture, RGB or grey, in the format that its name says."""

    def written(path: Path, image: NDArray[np.uint8] | NDArray[np.uint16]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        order = {4: cv2.COLOR_RGBA2BGRA, 3: cv2.COLOR_RGB2BGR}
        assert cv2.imwrite(str(path), image if image.ndim == 2 else cv2.cvtColor(image, order[image.shape[2]]))
        return path

    return written


@pytest.fixture
def check_export() -> Callable[[AnomalyHead, Sequence[Tensor]], None]:
    """See that a head of so many trunk maps and a mask exports, says what torch says, and builds in TensorRT."""

    def checked(head: AnomalyHead, inputs: Sequence[Tensor]) -> None:
        names = [*(f"maps_{i}" for i in range(len(inputs) - 1)), "mask"]
        graph = export(head, tuple(inputs), names, ["score", "map"])
        assert check_allowed(graph) == []
        found = open_session(graph).run(None, {name: each.numpy() for name, each in zip(names, inputs, strict=True)})
        for expected, value in zip(head(*inputs), found, strict=True):
            np.testing.assert_allclose(value, expected.numpy(), rtol=1e-4, atol=1e-4)
        build(graph)

    return checked


@pytest.fixture
def mvtec(
    tmp_path: Path,
    photographs: NDArray[np.uint8],
    write: Callable[[Path, NDArray[np.uint8]], Path],
) -> Path:
    """An MVTec-style folder: 20 good parts to learn from, and test parts of which some have a hole."""
    folder = tmp_path / "wall"
    for i, image in enumerate(photographs[:20]):
        write(folder / "train" / "good" / f"{i:02}.png", image)
    for i, image in enumerate(photographs[30:40]):
        write(folder / "test" / "good" / f"{i}.png", image)
        mask = np.zeros(image.shape[:2], np.uint8)
        cv2.circle(mask, (40 + 6 * i, 90 - 5 * i), 14, 255, -1)
        write(folder / "test" / "hole" / f"{i}.png", np.where(mask[..., None] > 0, np.uint8(5), image))
        write(folder / "ground_truth" / "hole" / f"{i}_mask.png", mask)
    return folder


@pytest.fixture(scope="session")
def trunk() -> onnx.ModelProto:
    """The trunk at 128 px."""
    return export_trunk(Trunk(), 128)


@pytest.fixture(scope="session")
def inputs(photographs: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [cv2.resize(each, (128, 128), interpolation=cv2.INTER_AREA).astype(np.uint8) for each in photographs]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory, photographs: NDArray[np.uint8]) -> Compiled:
    """A bundle of a flat folder with 24 good parts and one broken file, fitted shortly."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "good").mkdir()
    for i, image in enumerate(photographs[:24]):
        cv2.imwrite(str(folder / "good" / f"{i:02}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    (folder / "good" / "broken.png").write_bytes((folder / "good" / "00.png").read_bytes()[:999])
    settings = Settings(folder / "good", folder / "wall.bundle", size=128, group_by=r"(\d+)", fit_steps=24)
    return compile_data(settings)


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DINOv2 with registers in the published format, as deep as ViT-S: every weight is random."""
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=64, num_hidden_layers=12, num_attention_heads=2, image_size=70, patch_size=14
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Dinov2WithRegistersModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
    folder = tmp_path_factory.mktemp("dinov2") / "vit"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP in the published format, with a vocabulary of letters: every weight is random."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")
