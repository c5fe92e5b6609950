"""INP-Former's few shots: which pictures of each product are taken, and the 22 fixed variants of each.

Variants, as published: the picture; eight rotations and eight translations, reflected at the rim; mirrored; grey; three
quarter turns. They are made of normalised values after resizing and cropping, once, and never drawn anew; grey is that
of normalised values, so no true luminance. Unverified: translations are read as the four diagonal shifts of each
length, which makes eight; interpolation is bilinear with pixel centres; quarter turns are exact.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from compile.backbones.dinov2 import MEAN, STD

ANGLES = (-45.0, -33.75, -22.5, -11.25, 11.25, 22.5, 33.75, 45.0)
SHIFTS = tuple((x * step, y * step) for step in (0.2, 0.1) for x in (-1, 1) for y in (-1, 1))  # of half the side
GREY = (0.299, 0.587, 0.114)
VARIANTS = 22
Item = TypeVar("Item")


def draw(products: Sequence[Sequence[Item]], shots: int, seed: int = 1) -> list[list[Item]]:
    """Choose `shots` items of each product in turn, by one generator.

    Raises:
        ValueError: a product has fewer.

    """
    for i, items in enumerate(products):
        if len(items) < shots:
            raise ValueError(f"product {i} has {len(items)} pictures: {shots} shots want as many")
    generator = random.Random(seed)  # noqa: S311 - a reproducible draw, no secret
    return [generator.sample(list(items), shots) for items in products]


def variants(images: Tensor) -> Tensor:
    """Normalised pictures float [B, 3, S, S] to [B, 22, 3, S, S], the picture itself first.

    Raises:
        ValueError: pictures are not square, so that quarter turns would have another shape.

    """
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"pictures of {images.shape[2]}x{images.shape[3]}: the variants need square ones")
    return torch.stack(list(_each(images)), 1)


def picture_variants(pictures: Tensor) -> Tensor:
    """Pictures uint8 [B, S, S, 3] to [B, 22, S, S, 3], normalised in between and rounded."""
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))
    normalised = (pictures.permute(0, 3, 1, 2) / 255 - mean) / std
    back = (variants(normalised) * std + mean) * 255
    return back.round().clamp(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2)


def _each(images: Tensor) -> Iterator[Tensor]:
    yield images
    for angle in ANGLES:
        sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        yield _warp(images, [[cosine, -sine, 0], [sine, cosine, 0]])
    for x, y in SHIFTS:
        yield _warp(images, [[1, 0, x], [0, 1, y]])
    yield images.flip(3)
    grey = (images * torch.tensor(GREY).to(images).reshape(3, 1, 1)).sum(1, keepdim=True)
    yield grey.expand_as(images)
    for turns in (1, 2, 3):
        yield images.rot90(turns, (2, 3))


def _warp(images: Tensor, affine: list[list[float]]) -> Tensor:
    matrix = torch.tensor(affine).to(images).expand(len(images), -1, -1)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
