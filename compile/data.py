"""Read a folder of good parts, and say what was read, what was skipped and why.

Two layouts: MVTec AD style (`train/good`, and where there are some `test/<kind>` with their masks
`ground_truth/<kind>/<name>_mask.png`), or one flat folder of good images. JPEG, PNG, BMP and TIFF; grey, colour or
colour with an alpha that hides nothing; 8 or 16 bits. Scans, with or without pictures, in the same layouts and that of
MVTec 3D-AD (`compile.scan_files`).

Failure modes: a damaged file or one that is no image (`edge.picture` decodes here and on the box alike, to RGB); a
blank picture; a set that mixes channels or bit depths, where the larger part decides, as one camera gives one format; a
stray picture of another size, which would widen what the bundle accepts; 16-bit samples whose white is 10 or 12 bits,
decided once for the whole set, as a dark part must look dark.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.split import near_duplicates, thumbnail
from compile.listing import Skipped, list_files
from compile.scan_data import Scans, look_at_scans
from compile.scan_files import Found, find_scans
from edge.bundle import Source
from edge.errors import BeltlineError
from edge.front_end import BLANK_RANGE, FrameError
from edge.picture import Picture, decode
from edge.scans.unit import Unit

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})
FEWEST_PARTS = 20  # below it no threshold can be set
WHITES = (1023, 4095, 16383, 65535)
SMALLEST_SIDE = 16  # pixels; nothing smaller shows a part
FAR = 2.0  # times as far from the median as nine tenths of the pictures: real sets of crops stay within it
SIDE_MARGIN = 0.25  # where crops vary in size, how far a later one may lie outside the ones seen


class DataError(BeltlineError):
    """The folder cannot become a bundle. The message names the folder or file and what to do."""


class UnreadableImageError(ValueError):
    """The file is not a usable picture; the message is the reason."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """A test image: `kind` is `good` or the name of the defect; `mask` marks the defect where that is known."""

    path: Path
    kind: str
    mask: Path | None

    @property
    def defective(self) -> bool:
        return self.kind != "good"


@dataclass(frozen=True, slots=True)
class DataSet:
    """What a folder holds. `groups[i]` names the physical part that `good[i]` shows.

    A set of scans with pictures lists its pictures, and `scans` knows the scan of each; a set of scans alone lists the
    scans, and has no `source` of pictures.

    Where there are test pictures, `looks` numbers the part that each picture shows by its looks; `learned` are the
    labelled defects that a method learns from (`compile.learned_defects`), which are no test pictures then.
    """

    folder: Path
    layout: Literal["mvtec", "flat"]
    good: list[Path]
    groups: NDArray[np.int64]  # [n]
    test: list[LabelledImage]
    source: Source | None
    longer_side: int  # of the largest image, pixels
    skipped: list[Skipped] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    looks: dict[Path, int] = field(default_factory=dict)
    learned: list[LabelledImage] = field(default_factory=list)
    scans: Scans | None = None

    @property
    def pictures(self) -> Source:
        """What the pictures are like.

        Raises:
            DataError: there are only scans.

        """
        if self.source is None:
            raise DataError(
                f"{self.folder}: holds scans without pictures, and this method looks at pictures. Put the pictures "
                "into rgb/ beside xyz/, or beside the scans under their names."
            )
        return self.source

    @property
    def scanned(self) -> Scans:
        """The scans.

        Raises:
            DataError: there are none.

        """
        if self.scans is None:
            raise DataError(f"{self.folder}: holds no scans, and a method looks at them. Give xyz/ beside rgb/.")
        return self.scans

    @property
    def parts(self) -> int:
        return int(np.unique(self.groups).size)


def folder_name(folder: Path) -> str:
    """Name a folder as the user did, be it a link; where that is `.` or `..`, as the path that they stand for."""
    return Path(os.path.abspath(folder)).name  # noqa: PTH100 - resolve() would follow links


def read_image(path: Path) -> Picture:
    """Decode one picture: HxW grey or HxWx3 RGB, uint8 or uint16.

    Raises:
        UnreadableImageError: missing, empty, damaged, not an image, of another sample type, transparent, or of a
            few pixels.

    """
    try:
        image = decode(path.read_bytes())
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error)) from error
    except FrameError as error:
        raise UnreadableImageError(str(error)) from error
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise UnreadableImageError(f"{width}x{height} pixels, at least {SMALLEST_SIDE} a side are needed")
    return image


class _Seen(NamedTuple):
    path: Path
    shape: tuple[int, int]
    channels: Literal[1, 3]
    bits: int
    largest: int
    thumbnail: NDArray[np.float32]


def read_data(
    folder: Path,
    group_by: str = "near-duplicates",
    tick: Callable[[int, int], None] | None = None,
    unit: Unit | None = None,
    fewest: int = FEWEST_PARTS,
) -> DataSet:
    """Look at every file of a folder once.

    Args:
        folder: MVTec AD style, or flat.
        group_by: which images show the same physical part: `near-duplicates`, `folder` (one folder per part), or a
            regular expression on the file name whose first group (or whole match) names the part.
        tick: told (files done, files in all).
        unit: of scans; None to tell it from what they span.
        fewest: good images that are needed.

    Raises:
        DataError: no such folder, no readable image, too few good ones, or a mask that is not its picture's.

    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give the folder of good images.")
    good_folder = folder / "train" / "good"
    layout: Literal["mvtec", "flat"] = "mvtec" if good_folder.is_dir() else "flat"
    if layout == "flat" and (folder / "train").is_dir():
        raise DataError(f"{folder}: has train/ but no train/good/. Put the good images into {good_folder}.")
    remarks: list[str] = []
    scans = None
    if found := find_scans(folder):
        skipped = found.skipped
        files, test, scans = _read_scans(found, unit, skipped, remarks, tick)
    else:
        files, skipped = list_files(
            good_folder if layout == "mvtec" else folder, SUFFIXES, deep=layout == "mvtec" or group_by == "folder"
        )
        test = _test_images(folder, skipped) if layout == "mvtec" else []
    seen: list[_Seen] = []
    total = len(files) + len(test)
    for done, path in enumerate(files, start=1):
        if scans and path not in scans.of:
            continue
        try:
            seen.append(_look(path, scans))
        except UnreadableImageError as error:
            skipped.append(Skipped(path, str(error)))
        if tick:
            tick(done, total)
    kept = _near_in_size(_one_format(seen, skipped, remarks), skipped)
    if len(kept) < fewest:
        why = ": also a method that is fitted on few takes its threshold from them" if fewest == FEWEST_PARTS else ""
        unread = [item for item in skipped if item.path in set(files)]
        because = f"; skipped: {_by_reason(unread)}" if unread else ""
        raise DataError(
            f"{folder}: {len(kept)} usable good image(s) among {len(files)} file(s), at least {fewest} are needed"
            f"{because}. Add images of good parts{why}."
        )
    for image in test:
        check_mask(image)
    groups = _groups(kept, group_by, remarks)
    looks = _look_at_test(kept, test, scans, remarks, lambda done: tick(len(files) + done, total) if tick else None)
    return DataSet(
        folder,
        layout,
        good=[item.path for item in kept],
        groups=groups,
        test=test,
        source=None if scans and not scans.pictured else _source(kept, remarks),
        longer_side=max(max(item.shape) for item in kept),
        skipped=skipped,
        remarks=remarks,
        looks=looks,
        scans=scans,
    )


def _read_scans(
    found: Found, unit: Unit | None, skipped: list[Skipped], remarks: list[str], tick: Callable[[int, int], None] | None
) -> tuple[list[Path], list[LabelledImage], Scans]:
    """Look at the scans of training and test; those that cannot be used leave it here."""
    samples = [*found.good, *found.test]
    done = itertools.count(1)
    scans, others, unit_remark = look_at_scans(samples, unit, lambda: tick(next(done), len(samples)) if tick else None)
    skipped += others
    remarks.append(unit_remark)
    files = [sample.shown for sample in found.good]
    test = [LabelledImage(each.shown, each.kind, each.mask) for each in found.test if each.shown in scans.of]
    return files, test, scans


def _test_images(folder: Path, skipped: list[Skipped]) -> list[LabelledImage]:
    test = []
    for kind in sorted(path for path in (folder / "test").glob("*") if path.is_dir()):
        files, others = list_files(kind, SUFFIXES, deep=True)
        skipped.extend(others)
        masks = folder / "ground_truth" / kind.name
        for path in files:
            found = [masks / f"{path.stem}{ending}" for ending in ("_mask.png", ".png")]
            mask = next((candidate for candidate in found if candidate.is_file()), None)
            test.append(LabelledImage(path, kind.name, mask if kind.name != "good" else None))
    return test


def _look(path: Path, scans: Scans | None) -> _Seen:
    if scans and not scans.pictured:
        return _Seen(path, scans.looks[path].shape, 1, 16, 0, scans.looks[path].thumbnail)
    image = read_image(path)
    if scans and image.shape[:2] != (shape := scans.looks[path].shape):
        raise UnreadableImageError(
            f"a picture of {image.shape[1]}x{image.shape[0]} pixels, its scan has {shape[1]}x{shape[0]} points: give "
            "pictures that are aligned with the scan, place by place"
        )
    bits = 8 if image.dtype == np.uint8 else 16
    largest, smallest = int(image.max()), int(image.min())
    if largest - smallest < BLANK_RANGE:
        raise UnreadableImageError(f"blank: every sample lies between {smallest} and {largest}")
    height, width = image.shape[:2]
    return _Seen(path, (height, width), 1 if image.ndim == 2 else 3, bits, largest, thumbnail(image))


def _one_format(seen: Sequence[_Seen], skipped: list[Skipped], remarks: list[str]) -> list[_Seen]:
    """Keep the format that most pictures have: a camera has one, and a frame of another is not inspected."""
    counts = Counter((item.channels, item.bits) for item in seen)
    if len(counts) < 2:
        return list(seen)
    (channels, bits), number = counts.most_common(1)[0]
    words = f"{channels} channel(s) of {bits} bits"
    remarks.append(f"The set mixes formats; {words} was decided on, which {number} of {len(seen)} images have.")
    others = [item for item in seen if (item.channels, item.bits) != (channels, bits)]
    skipped.extend(
        Skipped(item.path, f"{item.channels} channel(s) of {item.bits} bits, the set has {words}") for item in others
    )
    return [item for item in seen if (item.channels, item.bits) == (channels, bits)]


def _by_reason(skipped: Sequence[Skipped]) -> str:
    """The commonest reasons, with the names of a few files each."""
    names: dict[str, list[str]] = {}
    for item in skipped:
        names.setdefault(item.reason, []).append(item.path.name)
    common = sorted(names.items(), key=lambda each: -len(each[1]))[:3]
    return ", ".join(
        f"{len(files)} x {reason} ({', '.join(files[:3])}{', ...' if len(files) > 3 else ''})"
        for reason, files in common
    )


def _near_in_size(seen: Sequence[_Seen], skipped: list[Skipped]) -> list[_Seen]:
    """Leave out strays by height, width or aspect ratio. Most sets have one size: then a factor of `FAR` is far."""
    if not seen:
        return []
    height, width = np.array([item.shape for item in seen]).T
    sizes = np.log(np.stack([height, width, width / height], axis=1))
    away = np.abs(sizes - np.median(sizes, axis=0))
    far = (away > np.log(FAR) + np.quantile(away, 0.9, axis=0)).any(axis=1)
    middle = f"{np.median(width):.0f}x{np.median(height):.0f}"
    skipped.extend(
        Skipped(item.path, f"{item.shape[1]}x{item.shape[0]} pixels, far from the {middle} in the middle of the set")
        for item, stray in zip(seen, far, strict=True)
        if stray
    )
    return [item for item, stray in zip(seen, far, strict=True) if not stray]


def _source(kept: Sequence[_Seen], remarks: list[str]) -> Source:
    sides = np.array([item.shape for item in kept])
    low, high = sides.min(axis=0), sides.max(axis=0)
    varies = low != high
    if varies.any():
        remarks.append(
            f"The images vary from {low[1]}x{low[0]} to {high[1]}x{high[0]} pixels (width x height); "
            f"frames up to {SIDE_MARGIN:.0%} outside that are inspected too."
        )
    low = np.where(varies, np.floor(low * (1 - SIDE_MARGIN)), low).astype(int)
    high = np.where(varies, np.ceil(high * (1 + SIDE_MARGIN)), high).astype(int)
    white = 255
    if kept[0].bits == 16:
        largest = max(item.largest for item in kept)
        white = next(level for level in WHITES if largest <= level)
        remarks.append(f"16-bit samples: the largest is {largest}, so white was taken to be {white}.")
    return Source(
        height=(int(low[0]), int(high[0])),
        width=(int(low[1]), int(high[1])),
        channels=kept[0].channels,
        white=white,
    )


def _groups(kept: Sequence[_Seen], group_by: str, remarks: list[str]) -> NDArray[np.int64]:
    """Number the physical parts; what looks like one part but is said to be two is reported."""
    alike = near_duplicates(np.stack([item.thumbnail for item in kept]))
    if group_by == "near-duplicates":
        return alike.groups
    keys = [str(item.path.parent) if group_by == "folder" else part_name(item.path, group_by) for item in kept]
    apart = [(i, j) for i, j, _ in alike.pairs if keys[i] != keys[j]]
    if apart:
        first, second = (kept[i].path.name for i in apart[0])
        remarks.append(
            f"{len(apart)} pair(s) of images look like the same part but belong to two by --group-by, for example "
            f"{first} and {second}: if they are one, the threshold promises too much."
        )
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _look_at_test(
    kept: Sequence[_Seen],
    test: Sequence[LabelledImage],
    scans: Scans | None,
    remarks: list[str],
    tick: Callable[[int], None],
) -> dict[Path, int]:
    """Number the part of each picture, and name test pictures of a training part: what is measured there flatters."""
    tried: list[_Seen] = []
    for done, image in enumerate(test, start=1):
        with contextlib.suppress(UnreadableImageError):  # named where the test pictures are loaded
            tried.append(_look(image.path, scans))
        tick(done)
    if not tried:
        return {}
    both = [*kept, *tried]
    alike = near_duplicates(np.stack([item.thumbnail for item in both]))
    pairs = alike.across(np.arange(len(kept), len(kept) + len(tried)))
    if pairs:
        training, tested, _ = pairs[0]
        remarks.append(
            f"{len({pair[1] for pair in pairs})} of {len(tried)} test images look like a part of the training images, "
            f"for example {tried[tested - len(kept)].path.name} like {kept[training].path.name}: accuracy flatters."
        )
    return {item.path: int(part) for item, part in zip(both, alike.groups, strict=True)}


def part_name(path: Path, pattern: str) -> str:
    """Give the part that a file's name names.

    Raises:
        DataError: the pattern does not match.

    """
    match = re.search(pattern, path.name)
    if match is None:
        raise DataError(f"--group-by {pattern!r} does not match {path.name}: every image needs a part.")
    return match.group(1) if match.groups() else match.group(0)


def check_mask(image: LabelledImage) -> None:
    """Refuse a mask that does not belong to its picture.

    Raises:
        DataError: it cannot be read, or is of another size.

    """
    if image.mask is None:
        return
    try:
        picture = read_image(image.path).shape[:2]
    except UnreadableImageError:
        return  # skipped, and named, where the pictures are loaded
    try:
        mask = read_image(image.mask).shape[:2]
    except UnreadableImageError as error:
        raise DataError(f"{image.mask}: not a readable mask: {error}. Replace it, or remove it.") from error
    if mask != picture:
        raise DataError(
            f"{image.mask}: the mask has {mask[1]}x{mask[0]} pixels, its picture {image.path} has "
            f"{picture[1]}x{picture[0]}. Give the mask of this picture, at its size."
        )
