"""Several classes of one bundle: a folder of good parts each, named by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from compile.data import DataError, DataSet, folder_name, read_data
from edge.bundle import ScanSource, Source
from edge.scans.unit import Unit

EIGHT_BITS = 255


def class_names(folders: Sequence[Path]) -> list[str]:
    """Name each class; nothing where there is only one."""
    return [folder_name(folder) for folder in folders] if len(folders) > 1 else [""]


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


def class_sources(classes: Sequence[DataSet]) -> list[Source]:
    """Describe the frames of each class: those of all classes that cameras of the same channels and bits see.

    Where formats differ, a station inspects a class with a camera of its format; grey becomes three equal channels.

    Raises:
        DataError: a class has scans alone.

    """
    sources = [data.pictures for data in classes]
    formats = [(each.channels, each.white == EIGHT_BITS) for each in sources]
    return [_joint([each for each, other in zip(sources, formats, strict=True) if other == own]) for own in formats]


def joint_scans(classes: Sequence[DataSet]) -> ScanSource:
    """Describe the scans of all classes.

    Raises:
        DataError: a class has none, or they are in two units.

    """
    sources = [data.scanned.source(data.good) for data in classes]
    if len({each.unit for each in sources}) > 1:
        raise DataError("The scans of one class are in metres, those of another in millimetres. Compile them apart.")
    spans = {}
    for name in ("height", "width", "distance_mm"):
        low, high = zip(*(getattr(each, name) for each in sources), strict=True)
        spans[name] = min(low), max(high)
    return sources[0].model_copy(update=spans)


def _joint(sources: Sequence[Source]) -> Source:
    low = [min(getattr(each, side)[0] for each in sources) for side in ("height", "width")]
    high = [max(getattr(each, side)[1] for each in sources) for side in ("height", "width")]
    white = max(each.white for each in sources)  # a dark class must look dark
    return sources[0].model_copy(update={"height": (low[0], high[0]), "width": (low[1], high[1]), "white": white})
