"""What every method of a comparison shares: a labelled data set's pictures, masks and trunk maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray

from compile.backbones.choice import Backbone, Level
from compile.data import FEWEST_PARTS, DataError, DataSet, LabelledImage, folder_name, read_data
from compile.evaluate import load_masks
from compile.features import Features, Rows, has_gpu, load_pictures, on_disk
from compile.job import Progress
from compile.learned_defects import draw_defects, load_defects, weigh
from compile.methods.method import Samples
from compile.metrics import MaskRule, Masks
from compile.pseudo_defects import paint_pictures, wanted
from compile.scan_maps import ScanMap, load_scan_maps, scan_input
from edge.bundle import Background, Input
from edge.scans.unit import Unit

PAINT_SEED = DRAW_SEED = 0
RULES: tuple[MaskRule, ...] = ("paper_nonzero", "half")
Maps = dict[Level, NDArray[np.float32]]  # [n, C, h, w] each


@dataclass(frozen=True, slots=True)
class Labelled:
    """One data set at one size; arrays are mapped from scratch files."""

    name: str
    backbone: Backbone
    size: int
    threads: int  # of the trunk
    good: NDArray[np.uint8]  # [n, size, size, 3], to fit on
    train: Maps  # of these
    painted: Maps  # of good pictures with painted defects, then of real ones; empty where no method wants them
    covered: NDArray[np.float32] | None  # where they are painted
    learned: int  # real defects among them
    test: Maps
    train_scans: dict[ScanMap, NDArray[np.float32]]  # maps of the scans; empty where no method wants them
    test_scans: dict[ScanMap, NDArray[np.float32]]
    images: list[LabelledImage]  # of the test
    pictures: NDArray[np.uint8]  # [n, size, size, 3], of the test
    masks: dict[MaskRule, Masks]
    remarks: list[str]

    @property
    def defective(self) -> NDArray[np.bool_]:
        return np.array([image.defective for image in self.images])

    @property
    def map_side(self) -> int:
        return self.backbone.map_side(self.size)

    def test_maps(self, levels: Sequence[Level], scans: Sequence[ScanMap]) -> list[NDArray[np.float32]]:
        """What a method of these levels and maps of scans is tested on."""
        return [*(self.test[level] for level in levels), *(self.test_scans[name] for name in scans)]

    def samples(self, levels: Sequence[Level], scans: Sequence[ScanMap] = ()) -> Samples:
        """What a method of these levels and maps of scans is fitted on."""
        good = [*(self.train[level] for level in levels), *(self.train_scans[name] for name in scans)]
        if self.covered is None:
            return Samples(good)
        rows = np.arange(len(self.covered))
        rows = weigh(rows[: len(rows) - self.learned], rows[len(rows) - self.learned :])
        painted = [cast("NDArray[np.float32]", Rows(self.painted[level], rows)) for level in levels]
        return Samples(good, painted, self.covered[rows])


def read_labelled(
    folder: Path,
    progress: Progress,
    learn_defects: int = 0,
    unit: Unit | None = None,
    fewest: int = FEWEST_PARTS,
) -> DataSet:
    """Read a folder of MVTec style, and refuse what cannot be compared on.

    Args:
        folder: with labels.
        progress: told what is done.
        learn_defects: how many labelled defects leave the test, for the methods that learn from them.
        unit: of scans; None to tell it from what they span.
        fewest: good pictures to fit on.

    Raises:
        DataError: no such folder, too few pictures, only scans, only one kind of test pictures, a mask of another size.

    """
    step = f"{folder_name(folder)}: read"
    data = read_data(folder, tick=lambda done, of: progress(step, done, of), unit=unit, fewest=fewest)
    data.pictures  # noqa: B018 - refuses scans alone
    check_kinds(folder, data.test)
    if learn_defects:
        data = draw_defects(data, learn_defects, DRAW_SEED)
        check_kinds(folder, data.test, f", once {learn_defects} are learned from with what shows the same parts")
    return data


def load_labelled(
    data: DataSet,
    size: int,
    trunk: onnx.ModelProto | None,
    work: Path,
    *,
    backbone: Backbone,
    levels: Sequence[Level],
    paint: bool,
    threads: int,
    progress: Progress,
    scans: Sequence[ScanMap] = (),
    background: Background = "none",
) -> Labelled:
    """Compute the trunk maps of a data set, once for all methods.

    Args:
        data: from `read_labelled`.
        size: side of the graph's input.
        trunk: as `export_trunk` makes it for this size; None where there are no levels.
        work: an empty scratch folder.
        backbone: whose it is.
        levels: of its maps.
        paint: whether to paint defects on good pictures, for the methods that learn from them.
        threads: of the trunk.
        progress: told what is done.
        scans: maps of the scans that methods want.
        background: of the scans.

    Raises:
        DataError: the test pictures that can be read are of one kind, or there are no scans and methods want them.

    """
    name = folder_name(data.folder)
    spec = Input(height=size, width=size, source=data.pictures)
    paths = {"train": data.good, "test": [image.path for image in data.test]}
    maps: dict[str, Maps] = {}
    scan_maps: dict[str, dict[ScanMap, NDArray[np.float32]]] = {part: {} for part in paths}
    pictures: dict[str, NDArray[np.uint8]] = {}
    images = list(data.test)
    skipped = list(data.skipped)
    for part, listed in paths.items():
        files: Sequence[Path] = listed
        (work / part).mkdir()
        if scans:
            tick = partial(progress, f"{name}: {part} scans")
            scan_spec = scan_input(data.scanned.source(data.good), size, background, scans)
            prepared = load_scan_maps(files, data.scanned, scan_spec, scans, work / part, tick=tick)
            files = [files[i] for i in prepared.kept]
            skipped += prepared.skipped
        pictures[part], kept, others = load_pictures(files, spec, work / part / "pictures.bin")
        skipped += others
        if scans:
            scan_maps[part] = {key: cast("NDArray[np.float32]", Rows(v, kept)) for key, v in prepared.maps.items()}
        if part == "test":
            known = {files[i] for i in kept}
            images = [image for image in images if image.path in known]
    covered = None
    if paint:
        (work / "painted").mkdir()
        painted = wanted(len(pictures["train"]))
        odd = on_disk(
            work / "painted" / "pictures.bin", np.dtype(np.uint8), (painted + len(data.learned), size, size, 3)
        )
        covered, _ = paint_pictures(pictures["train"], odd[:painted], PAINT_SEED, partial(progress, f"{name}: paint"))
        odd[painted:], real = load_defects(data.learned, spec, work / "painted" / "defects.bin")
        pictures["painted"], covered = odd, np.concatenate([covered, real])
    module = backbone.build(levels, size) if trunk is not None and has_gpu() else None
    for part, each in pictures.items():
        features = Features(work / part, ["float"])
        if len(each) and trunk is not None:
            tick = partial(progress, f"{name}: {part} maps")
            features.extract("float", trunk, each, exact=False, threads=threads, tick=tick, module=module)
        maps[part] = dict(zip(levels, features.maps, strict=False))
    check_kinds(data.folder, images)
    side = backbone.map_side(size)
    masks: dict[MaskRule, Masks] = {rule: load_masks(images, side, rule) for rule in RULES}
    remarks = _remarks(data, images, masks["half"], [f"skipped {item.path}: {item.reason}" for item in skipped])
    return Labelled(
        name,
        backbone,
        size,
        threads,
        pictures["train"],
        maps["train"],
        maps.get("painted", {}),
        covered,
        len(data.learned),
        maps["test"],
        scan_maps["train"],
        scan_maps["test"],
        images,
        pictures["test"],
        masks,
        remarks,
    )


def check_kinds(folder: Path, images: Sequence[LabelledImage], when: str = "") -> None:
    """Refuse a data set on which nothing can be compared.

    Raises:
        DataError: not both good and defective test pictures.

    """
    defective = sum(image.defective for image in images)
    if not 0 < defective < len(images):
        raise DataError(
            f"{folder}: {len(images) - defective} good and {defective} defective test pictures that can be read{when}: "
            "both kinds are needed to compare methods. Put them into test/good and test/<kind of defect>."
        )


def _remarks(data: DataSet, images: Sequence[LabelledImage], masks: Masks, skipped: list[str]) -> list[str]:
    unknown = sum(mask is None for mask in masks)
    words = [f"{unknown} of {len(images)} test pictures have a defect but no mask: they stay out of the pixel figures."]
    return [*skipped, *data.remarks, *(words if unknown else [])]
