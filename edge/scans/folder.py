"""Which files of a folder are scans, and which picture belongs to each.

In a folder `xyz` everything is a scan, with pictures in `rgb` beside it (as MVTec 3D-AD). Elsewhere a scan is told by
its name (`.npy`, `.ply`, `.pcd`, `NAME_depth.png`), and TIFFs by their samples: those of scans are floats. The picture
of `NAME.*` and of `NAME_depth.png` is `NAME.png` or `.jpg`; Eyecandies has `NAME_image_4.png`, lit from all sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge.front_end import FrameError
from edge.scans.read import SUFFIXES
from edge.scans.tiff import is_float
from edge.view import View

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
NAMED = frozenset({".npy", ".ply", ".pcd"})
DEPTH = "_depth"
EYECANDIES = "_image_4"


def list_views(folder: Path) -> list[View]:
    """List the scans of a folder, in the order of their names, each with its picture where there is one."""
    if (folder / "xyz").is_dir():
        pictures = _files(folder / "rgb", PICTURES) if (folder / "rgb").is_dir() else []
        return pair(_files(folder / "xyz", SUFFIXES), pictures)[0]
    files = _files(folder, {*SUFFIXES, *PICTURES})
    scans = scans_among(files)
    return pair(scans, sorted(set(files) - set(scans)))[0]


def pair(scans: Sequence[Path], pictures: Sequence[Path]) -> tuple[list[View], list[Path]]:
    """Give each scan its picture, by name; and the pictures that are left."""
    by_name = {path.stem: path for path in pictures}
    views = []
    for scan in scans:
        name = scan_name(scan)
        views.append(View(by_name.pop(name, None) or by_name.pop(name + EYECANDIES, None), scan))
    return views, list(by_name.values())


def scan_name(scan: Path) -> str:
    """What a scan is called, and its picture and mask, too."""
    return scan.stem.removesuffix(DEPTH) if scan.suffix.lower() == ".png" else scan.stem


def scans_among(files: Sequence[Path]) -> list[Path]:
    """Tell scans from pictures. The TIFFs of one folder are all the one or the other: the first readable decides."""
    tiffs = [path for path in files if path.suffix.lower() in (".tif", ".tiff")]
    named = [path for path in files if path.suffix.lower() in NAMED or path.name.endswith(f"{DEPTH}.png")]
    floats = next((known for path in tiffs if (known := _is_float(path)) is not None), False)
    return sorted(named + (tiffs if floats else []))


def _files(folder: Path, suffixes: Sequence[str] | frozenset[str] | set[str]) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.is_file())


def _is_float(path: Path) -> bool | None:
    try:
        return is_float(path.read_bytes())
    except (OSError, FrameError):
        return None
