"""Which files of a folder are scans, and which picture and mask belong to each.

MVTec 3D-AD style: `train/good/xyz`, `test/<kind>/xyz`, with `rgb` and `gt` beside each `xyz`, by name. MVTec AD style
or flat, with scans in place of pictures: then a picture lies beside its scan, and a mask in `ground_truth`. What in one
folder is a scan, and which picture is its own, `edge.scans.folder` tells the workshop and the box alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from compile.listing import Skipped, list_files
from edge.scans.folder import PICTURES, pair, scan_name, scans_among
from edge.scans.read import SUFFIXES

DESCRIPTIONS = frozenset({".yaml", ".json", ".txt"})  # of cameras and ranges


class Sample(NamedTuple):
    """One scan; `picture` and `mask` where there are any. `kind` is `good` or the name of the defect."""

    scan: Path
    picture: Path | None
    kind: str
    mask: Path | None = None

    @property
    def shown(self) -> Path:
        """The file that names the sample: its picture, or the scan itself."""
        return self.picture or self.scan


class Found(NamedTuple):
    good: list[Sample]
    test: list[Sample]
    skipped: list[Skipped]


def find_scans(folder: Path) -> Found | None:
    """Find the scans of a folder; None where it holds pictures alone."""
    train = folder / "train" / "good"
    base = train if train.is_dir() else folder
    good, skipped = _samples(base, "good", base)
    if not good:
        return None
    test = []
    if base == train:
        for kind in sorted(path for path in (folder / "test").glob("*") if path.is_dir()):
            found, others = _samples(kind, kind.name, folder / "ground_truth" / kind.name)
            test += found
            skipped += others
    pictured = 2 * sum(sample.picture is not None for sample in good) >= len(good)
    if pictured:
        alone = [sample.scan for sample in (*good, *test) if sample.picture is None]
        skipped += [Skipped(path, "a scan without its picture, which others have") for path in alone]
    return Found(_pictured(good, pictured=pictured), _pictured(test, pictured=pictured), skipped)


def _pictured(samples: list[Sample], *, pictured: bool) -> list[Sample]:
    if pictured:
        return [sample for sample in samples if sample.picture]
    return [sample._replace(picture=None) for sample in samples]


def _samples(folder: Path, kind: str, masks: Path) -> tuple[list[Sample], list[Skipped]]:
    if (folder / "xyz").is_dir():
        scans, skipped = list_files(folder / "xyz", SUFFIXES, deep=False)
        pictures: list[Path] = []
        if (folder / "rgb").is_dir():
            pictures, others = list_files(folder / "rgb", PICTURES, deep=False)
            skipped += others
        masks = folder / "gt"
    else:
        files, skipped = list_files(folder, {*SUFFIXES, *PICTURES}, deep=False)
        scans = scans_among(files)
        pictures = sorted(set(files) - set(scans))
    views, left = pair(scans, pictures)
    found = []
    for scan, view in zip(scans, views, strict=True):
        ends = [masks / f"{scan_name(scan)}{end}" for end in (".png", "_mask.png")]
        mask = next((path for path in ends if path.is_file()), None) if kind != "good" else None
        found.append(Sample(scan, view.picture, kind, mask))
    if found:
        skipped += [Skipped(path, "a picture without its scan") for path in left]
    return found, [item for item in skipped if item.path.suffix.lower() not in DESCRIPTIONS]
