"""Labelled defects to learn from: INP-Former++'s semi-supervised setting, on a smaller test set.

The paper's, by its descriptions: ten real defects join the synthetic ones for the segmentation head. Which ten, and
whether they are tested on, is not known. Ours: a draw by a seed, the kinds of defect in turn, so that a smaller draw is
the beginning of a larger one; what is drawn leaves the test set; the real ones are a fixed share of what the head
meets, however many pictures are painted; no painting of real defects onto other parts.

With a drawn picture every other picture of the same part leaves the test, good or defective. Guaranteed: those that
`calibration.split` recognises (moved by up to 1/16, lit otherwise), and those that `--group-by` says to show the same
part, by a regular expression or by a folder per part: test/hole/p7 shows the part of test/good/p7 and train/good/p7.
Files that lie in test/<kind> itself are of no such folder; their names are numbers of each kind. Not guaranteed:
pictures of one part turned by more than a few degrees, or from another side, where no name tells; nor a picture from
before the damage where the defect, on a surface that repeats itself, makes it as unlike as another part.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compile.data import DataError, DataSet, LabelledImage, UnreadableImageError, part_name, read_image
from compile.features import load_pictures
from compile.metrics import resize_mask
from compile.pseudo_defects import STRIDE, cells
from edge.bundle import Input, Source

SHARE = 1 / 3  # of the defects that the head meets: a few real ones alone would be known by heart


def draw_defects(data: DataSet, count: int, seed: int, group_by: str = "near-duplicates") -> DataSet:
    """Move `count` labelled defects from the test pictures to `learned`, and leave out what shows the same parts.

    Args:
        data: with test pictures.
        count: how many, at least 1.
        seed: the same one draws the same of the same files.
        group_by: as for `compile.data.read_data`.

    Raises:
        DataError: there are fewer defective test pictures with a mask that can be used.

    """
    kinds: dict[str, list[LabelledImage]] = {}
    for image in data.test:
        if _usable(image):
            kinds.setdefault(image.kind, []).append(image)
    there = sum(map(len, kinds.values()))
    if there < count:
        advice = f"Ask for {there} at most" if there else "Put some into test/<kind>, masks into ground_truth/<kind>"
        raise DataError(
            f"{data.folder}: --learn-defects {count}: {there} of the test pictures have a defect and a mask that marks "
            f"it at the picture's size. {advice}, or leave the option out."
        )
    rng = np.random.default_rng(seed)
    queues = [[kinds[kind][i] for i in rng.permutation(len(kinds[kind]))] for kind in sorted(kinds)]
    queues = [queues[i] for i in rng.permutation(len(queues))]
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    learned = turns[:count]
    same = np.any([shows_same_part(data, each, [i.path for i in data.test], group_by) for each in learned], axis=0)
    test = [image for image, gone in zip(data.test, same, strict=True) if not gone]
    others = len(data.test) - len(test) - count
    names = ", ".join(f"{each.kind}/{each.path.name}" for each in learned)
    remark = (
        f"{count} labelled defect(s) were drawn by seed {seed} to learn from and left the test pictures, and with them "
        f"{others} other picture(s) of the same parts. Drawn: {names}."
    )
    left = _what_is_left(data.test, test)
    return replace(data, test=test, learned=learned, remarks=[*data.remarks, remark, *left])


def _what_is_left(before: Sequence[LabelledImage], after: Sequence[LabelledImage]) -> list[str]:
    """Say which kinds nothing can be measured on any more."""
    kinds = {image.kind for image in after}
    gone = sorted({image.kind for image in before} - kinds)
    words = [f"No test picture of {', '.join(gone)} is left: what is learned is not measured on that."] if gone else []
    if len({image.defective for image in after}) < 2:
        left = "none" if not after else "good ones alone" if "good" in kinds else "defective ones alone"
        words.append(f"Of the test pictures {left} are left: nothing can be measured on them. Draw fewer.")
    return words


def shows_same_part(
    data: DataSet, image: LabelledImage, paths: Sequence[Path], group_by: str = "near-duplicates"
) -> NDArray[np.bool_]:
    """Tell which of `paths`, good or of the test, show the part of a test picture: bool [len(paths)]."""
    look, named = data.looks.get(image.path), _named_part(data, image.path, group_by)
    return np.array(
        [
            path == image.path
            or (look is not None and data.looks.get(path) == look)
            or (named is not None and _named_part(data, path, group_by) == named)
            for path in paths
        ],
        bool,
    )


def load_defects(
    images: Sequence[LabelledImage], spec: Input, file: Path, sources: Sequence[Source] = ()
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Load drawn defects as the graph sees them; `sources` tells of the frames of each where they differ.

    Returns:
        uint8 [n, H, W, 3], mapped from `file`, and float32 [n, H / 4, W / 4]: the share of each cell that the mask
        covers, relative to the cell that it covers most: a fine scratch covers none by half.

    Raises:
        DataError: one is no picture that the front end takes.

    """
    specs = [spec.model_copy(update={"source": source}) for source in sources] or spec
    pictures, _, skipped = load_pictures([image.path for image in images], specs, file)
    if skipped:
        raise DataError(
            f"{skipped[0].path}: was drawn to learn from, and cannot be: {skipped[0].reason}. Remove it from the test "
            "pictures."
        )
    covered = np.zeros((len(images), -(-spec.height // STRIDE), -(-spec.width // STRIDE)), np.float32)
    for each, image in zip(covered, images, strict=True):
        assert image.mask is not None
        found = cells(resize_mask(_read_mask(image.mask), spec.height, spec.width, "paper_nonzero"))
        each[:] = found / max(float(found.max()), 1e-6)
    return pictures, covered


def weigh(painted: NDArray[np.int64], learned: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give rows of painted and real defects, the real ones as often as makes them `SHARE` of all at least."""
    if not learned.size:
        return painted
    times = math.ceil(SHARE / (1 - SHARE) * painted.size / learned.size)
    return np.concatenate([painted, np.tile(learned, max(times, 1))])


def _usable(image: LabelledImage) -> bool:
    if image.mask is None:
        return False
    try:
        mask = _read_mask(image.mask)
        return bool(mask.any()) and mask.shape == read_image(image.path).shape[:2]
    except UnreadableImageError:
        return False


def _read_mask(path: Path) -> NDArray[np.generic]:
    mask = read_image(path)
    return mask if mask.ndim == 2 else mask.max(axis=2)


def _named_part(data: DataSet, path: Path, group_by: str) -> str | None:
    """Name the part, as far as names tell: parts of other classes are others."""
    if group_by == "near-duplicates" or not path.is_relative_to(data.folder):
        return None
    if group_by == "folder":
        return "/".join(path.relative_to(data.folder).parts[2:-1]) or None  # below test/<kind> or train/good
    return part_name(path, group_by) if re.search(group_by, path.name) else None
