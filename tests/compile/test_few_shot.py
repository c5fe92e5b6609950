"""The 22 fixed variants are what their description says, and a draw of few shots repeats."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data

from compile.methods.few_shot import ANGLES, SHIFTS, VARIANTS, draw, picture_variants, variants

SIDE = 40
ROTATIONS, TRANSLATIONS = slice(1, 9), slice(9, 17)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """A smooth cut-out of a photograph, float [1, 3, 40, 40]."""
    cut = data.coffee()[50 : 50 + 8 * SIDE : 8, 200 : 200 + 8 * SIDE : 8]
    return torch.from_numpy(cut.astype(np.float32)).permute(2, 0, 1)[None] / 255


def test_there_are_22(image):
    found = variants(image.expand(2, -1, -1, -1))
    assert found.shape == (2, VARIANTS, 3, SIDE, SIDE)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0, 0], image[0])
    flat = found[0].flatten(1)
    distances = torch.cdist(flat, flat) + torch.eye(VARIANTS) * 99
    assert float(distances.min()) > 0.1  # no two are the same


@pytest.mark.parametrize("number", range(8))
def test_rotations_reflect_at_the_rim(image, number):
    found = variants(image)[0, ROTATIONS][number].numpy()
    want = ndimage.rotate(image[0].numpy(), ANGLES[number], (1, 2), reshape=False, order=1, mode="reflect")
    assert np.abs(found - want).max() < 1e-3


@pytest.mark.parametrize("number", range(8))
def test_translations_are_a_tenth_and_a_twentieth_of_the_side(image, number):
    x, y = SHIFTS[number]
    found = variants(image)[0, TRANSLATIONS][number].numpy()
    want = ndimage.shift(image[0].numpy(), (0, -y * SIDE / 2, -x * SIDE / 2), order=1, mode="reflect")
    assert np.abs(found - want).max() < 1e-3
    assert {abs(x), abs(y)} in ({0.2}, {0.1})


def test_the_rest_is_mirrored_grey_and_turned(image):
    mirrored, grey, *turned = variants(image)[0, 17:].numpy()
    source = image[0].numpy()
    np.testing.assert_array_equal(mirrored, source[:, :, ::-1])
    np.testing.assert_allclose(grey, np.tensordot((0.299, 0.587, 0.114), source, 1)[None].repeat(3, 0), atol=1e-6)
    for turns, each in enumerate(turned, start=1):
        np.testing.assert_array_equal(each, np.rot90(source, turns, (1, 2)))


def test_pictures_in_bytes_go_through_normalised_values(image):
    pictures = (image * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    found = picture_variants(pictures)
    assert found.dtype == torch.uint8
    assert found.shape == (1, VARIANTS, SIDE, SIDE, 3)
    assert torch.equal(found[:, 0], pictures)
    assert torch.equal(found[:, 17], pictures.flip(2))
    grey = found[0, 18].float()
    assert float((grey[..., 0] - grey[..., 2]).abs().max()) > 5  # grey of normalised values is a tinted picture


def test_oblong_pictures_are_refused():
    with pytest.raises(ValueError, match="30x40"):
        variants(torch.zeros(1, 3, 30, 40))


def test_a_draw_repeats_and_is_without_replacement():
    products = [list("abcdefgh"), list("ABCDEFGH")]
    found = draw(products, 4)
    assert found == draw(products, 4)
    assert found != draw(products, 4, seed=2)
    assert [len(set(chosen)) for chosen in found] == [4, 4]
    assert set(found[1]) <= set(products[1])


def test_too_few_pictures_are_named():
    with pytest.raises(ValueError, match="product 1 has 3 pictures: 4 shots"):
        draw([list("abcd"), list("abc")], 4)
