"""Several classes of one bundle: a folder of good parts each, named by it, all seen by one station's camera."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from compile.data import DataError, DataSet, read_data
from edge.bundle import Source
from edge.scans.unit import Unit

EIGHT_BITS = 255


def class_names(folders: Sequence[Path]) -> list[str]:
    """Name each class; nothing where there is only one."""
    return [folder.resolve().name for folder in folders] if len(folders) > 1 else [""]


def read_classes(
    folders: Sequence[Path], group_by: str, tick: Callable[[int, int], None] | None, unit: Unit | None = None
) -> list[DataSet]:
    """Read the folder of each class.

    Raises:
        DataError: what is wrong with each of them that cannot be used.

    """
    found, problems = [], []
    for folder in folders:
        try:
            found.append(read_data(folder, group_by, tick, unit))
        except DataError as error:  # noqa: PERF203 - a turn is seconds of reading
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return found


def joint_source(classes: Sequence[DataSet]) -> Source:
    """Describe the frames of all classes.

    Raises:
        DataError: classes differ in channels or bits, or have scans alone.

    """
    first = classes[0]
    for other in classes[1:]:
        pair = [data.pictures for data in (first, other)]
        formats = [(each.channels, 8 if each.white == EIGHT_BITS else 16) for each in pair]
        if formats[0] != formats[1]:
            words = [f"{channels} channel(s) of {bits} bits" for channels, bits in formats]
            raise DataError(
                f"{first.folder} has images of {words[0]}, {other.folder} of {words[1]}. The classes of a bundle are "
                "seen by one camera: bring them to one format, or compile a bundle each."
            )
    sources = [data.pictures for data in classes]
    low = [min(getattr(each, side)[0] for each in sources) for side in ("height", "width")]
    high = [max(getattr(each, side)[1] for each in sources) for side in ("height", "width")]
    white = max(each.white for each in sources)  # a dark class must look dark
    return sources[0].model_copy(update={"height": (low[0], high[0]), "width": (low[1], high[1]), "white": white})
