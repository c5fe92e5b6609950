"""Pictures and trunk maps on disk: computed once per rendering of the trunk, read by every fit.

The trunk is frozen, so its maps never change: fitting a head on the maps of all renderings (float and both INT8 forms)
costs no more than on one, and makes it indifferent to the noise of quantisation. On a processor ONNX Runtime computes
them, picture by picture: EfficientNet-Lite0 at 256 pixels takes 14 ms, in torch 23 ms and in batches of 8 42 ms (one
thread). On a GPU torch computes those of the float trunk, in batches and full float32; the other renderings are graphs
that torch does not read, and stay with ONNX Runtime on the processor.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, repeat
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from torch import nn

from compile.bundle_writer import replacing
from compile.data import UnreadableImageError, read_image
from compile.job import Graphs
from compile.listing import Skipped
from compile.methods.descent import computing, device
from compile.onnx_session import open_session
from edge.bundle import Input
from edge.errors import BeltlineError
from edge.front_end import FrameError, rgb

Tick = Callable[[int, int], None]
SCORE_BATCH = 8
BATCH = 32  # pictures, on a GPU


class ScratchError(BeltlineError):
    """The scratch folder is full."""


def load_pictures(
    paths: Sequence[Path], spec: Input | Sequence[Input], file: Path, tick: Tick | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[Skipped]]:
    """Bring pictures to the graph's input by the front end of the box, told the same of all or something of each.

    Returns:
        uint8 [n, H, W, 3] mapped from `file`; which of `paths` they are; and what was skipped.

    """
    specs = [spec] * max(len(paths), 1) if isinstance(spec, Input) else spec
    shape = (max(len(paths), 1), specs[0].height, specs[0].width, 3)
    pictures: NDArray[np.uint8] = on_disk(file, np.dtype(np.uint8), shape)
    kept: list[int] = []
    skipped = []
    for position, path in enumerate(paths):
        try:
            pictures[len(kept)] = rgb(read_image(path), specs[position])
            kept.append(position)
        except (UnreadableImageError, FrameError) as error:
            skipped.append(Skipped(path, str(error)))
        if tick:
            tick(position + 1, len(paths))
    return pictures[: len(kept)], np.array(kept, np.int64), skipped


def on_disk(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Map a new file; its blocks are claimed at once, as writing to a mapped file on a full disk kills the process.

    Raises:
        ScratchError: there is no room.

    """
    size = math.prod(shape) * dtype.itemsize
    try:
        with file.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        raise ScratchError(
            f"{file.parent}: no room for {size / 2**20:.0f} MB of scratch data ({error.strerror}). "
            "Free some space on that disk, or work on another."
        ) from error
    return np.memmap(file, dtype, "r+", shape=shape)


class Rows:
    """Chosen rows of an array on disk, read when they are asked for."""

    def __init__(self, source: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        self._source, self._rows = source, rows
        self.shape = (len(rows), *source.shape[1:])

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        return np.asarray(self._source[self._rows[index]])


@dataclass(frozen=True, slots=True)
class FeatureFiles:
    """Where the maps lie: float32 [renderings * pictures, C, h, w] per hierarchy, [pictures, C, h, w] of scans."""

    paths: list[Path]
    shapes: list[tuple[int, ...]]


def open_rows(files: FeatureFiles, rows: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Chosen rows of each hierarchy, read when they are asked for."""
    return [
        cast("NDArray[np.float32]", Rows(np.memmap(path, np.float32, "r", shape=shape), rows % shape[0]))
        for path, shape in zip(files.paths, files.shapes, strict=True)
    ]


class Features:
    """Trunk maps of n pictures under each rendering: per hierarchy float32 [renderings * n, C, h, w] on disk.

    Maps of their scans follow, float32 [n, C, h, w], which are the same in every rendering.

    Args:
        folder: for what is on disk.
        renderings: of the trunk, or one name where there is no trunk.
        scans: maps of the scans, mapped from files.
        masks: float32 [n, h, w], what of each map counts; all of it, if there are none.

    """

    def __init__(
        self,
        folder: Path,
        renderings: Sequence[str],
        scans: Sequence[NDArray[np.float32]] = (),
        masks: NDArray[np.float32] | None = None,
    ) -> None:
        self._folder, self.renderings = folder, list(renderings)
        self._scans, self._masks = list(scans), masks
        self.maps: list[NDArray[np.float32]] = []
        self.pictures = len(scans[0]) if scans else 0

    @property
    def together(self) -> list[NDArray[np.float32]]:
        """What a head takes: the trunk's maps, then those of scans."""
        return [*self.maps, *self._scans]

    def extract(
        self,
        name: str,
        trunk: onnx.ModelProto,
        pictures: NDArray[np.uint8],
        *,
        exact: bool,
        threads: int,
        tick: Tick | None,
        module: nn.Module | None = None,
    ) -> None:
        """Fill one rendering, unless that was done before the process was killed.

        Args:
            name: of the rendering.
            trunk: its graph.
            pictures: uint8 [n, H, W, 3].
            exact: as for `open_session`.
            threads: of the processor.
            tick: told what is done.
            module: what the graph was exported from, if torch shall compute it.

        """
        if self._found(name, pictures):
            return
        if module is not None:
            with computing(module):
                self._fill(name, _by_torch(module, pictures), pictures, tick)
        else:
            sessions = repeat(open_session(trunk, threads=threads, exact=exact))
            self._fill(name, _by_onnx(sessions, pictures), pictures, tick)

    def _found(self, name: str, pictures: NDArray[np.uint8]) -> bool:
        done = self._folder / f"{name}.done"
        if not done.exists():
            return False
        shapes = enumerate(json.loads(done.read_text("utf-8")))
        found = [np.memmap(self._path(i), np.float32, "r+", shape=tuple(shape)) for i, shape in shapes]
        self.pictures, self.maps = len(pictures), self.maps or list(found)
        return True

    def _fill(self, name: str, answers: Iterator[list[Any]], pictures: NDArray[np.uint8], tick: Tick | None) -> None:
        first, done = self.renderings.index(name) * len(pictures), 0
        for found in answers:
            if not self.maps:
                self.pictures = len(pictures)
                self.maps = [self._file(i, len(self.renderings) * len(pictures), each) for i, each in enumerate(found)]
            for array, values in zip(self.maps, found, strict=True):
                array[first + done : first + done + len(values)] = values
            done += len(found[0])
            if tick:
                tick(done, len(pictures))
        for array in self.maps:
            cast("np.memmap[Any, Any]", array).flush()
        with replacing(self._folder / f"{name}.done", json.dumps([array.shape for array in self.maps]).encode()):
            pass

    def extract_in_turns(self, trunks: Graphs, pictures: NDArray[np.uint8], *, threads: int, tick: Tick | None) -> None:
        """Fill the one rendering there is: each picture by one of these trunks, in turn."""
        (name,) = self.renderings
        if self._found(name, pictures):
            return
        sessions = [open_session(each, threads=threads, exact=key == "trt") for key, each in trunks.items()]
        self._fill(name, _by_onnx(cycle(sessions), pictures), pictures, tick)

    def _file(self, number: int, rows: int, like: NDArray[np.float32]) -> NDArray[np.float32]:
        return on_disk(self._path(number), np.dtype(np.float32), (rows, *like.shape[1:]))

    def _path(self, number: int) -> Path:
        return self._folder / f"maps_{number}.bin"

    @property
    def files(self) -> FeatureFiles:
        scans = [Path(str(cast("np.memmap[Any, Any]", array).filename)) for array in self._scans]
        own = [self._path(i) for i in range(len(self.maps))]
        return FeatureFiles([*own, *scans], [array.shape for array in self.together])

    def rows_of(self, pictures: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of all renderings of the chosen pictures."""
        return np.concatenate([pictures + turn * self.pictures for turn in range(len(self.renderings))])

    @torch.no_grad()
    def score(
        self, head: nn.Module, name: str, rows: NDArray[np.int64], map_side: int, class_index: int | None = None
    ) -> NDArray[np.float64]:
        """Score the chosen pictures of one rendering with a head, all as one class if it must be told: [len(rows)]."""
        first = self.renderings.index(name) * self.pictures
        scores = []
        for start in range(0, len(rows), SCORE_BATCH):
            pictures = rows[start : start + SCORE_BATCH]
            chosen = first + pictures
            maps = [torch.from_numpy(np.asarray(array[chosen % len(array)])) for array in self.together]
            mask = torch.ones(len(chosen), map_side, map_side)
            if self._masks is not None:
                mask = torch.from_numpy(np.asarray(self._masks[pictures]))
            classes = [] if class_index is None else [torch.full((len(chosen),), class_index)]
            score, _ = head(*maps, mask, *classes)
            scores.append(score.numpy().astype(np.float64))
        return np.concatenate(scores)


def has_gpu() -> bool:
    """Whether fits compute on one."""
    return device().type != "cpu"


def _by_onnx(sessions: Iterator[InferenceSession], pictures: NDArray[np.uint8]) -> Iterator[list[Any]]:
    for picture, session in zip(pictures, sessions, strict=False):
        yield session.run(None, {"image": picture[None]})


def _by_torch(module: nn.Module, pictures: NDArray[np.uint8]) -> Iterator[list[Any]]:
    for start in range(0, len(pictures), BATCH):
        batch = torch.from_numpy(np.array(pictures[start : start + BATCH])).to(device())
        yield [each.cpu().numpy() for each in module(batch)]
