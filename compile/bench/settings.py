"""The settings that methods are compared in: a model per data set, one of all, a few shots of good pictures, or none.

INP-Former's, as its paper has them: multi-class is one model of all data sets (super-multi-class where they are of
different origin); few-shot is k good pictures of each, drawn by the seed, in their fixed variants; zero-shot is a model
of all other data sets, whose map is the distance to the picture's own prototypes. Ours: few shots of one data set
alone; other methods are given the k pictures as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from compile.bench.data import Labelled
from compile.data import FEWEST_PARTS
from compile.features import Features, Rows
from compile.job import Progress
from compile.methods.few_shot import draw, picture_variants
from compile.methods.method import Maps, Method, Samples, fit_alone
from compile.wishes import WishError


@dataclass(frozen=True, slots=True)
class Entry:
    """A method in one setting: a row of the tables.

    Args:
        name: of the method.
        method: the same.
        shots: good pictures of each data set that it is fitted on; None for all, 0 only where the method can do so.

    """

    name: str
    method: Method
    shots: int | None = None

    @property
    def label(self) -> str:
        """Name it for people."""
        if self.shots is None:
            return self.name
        return f"{self.name}, {self.shots} shot{'' if self.shots == 1 else 's'}"

    @property
    def transferred(self) -> bool:
        """Whether it is fitted on the other data sets."""
        return self.shots == 0 and self.method.shots is not None and self.method.shots.fewest > 0

    def turns(self, count: int, *, together: bool) -> list[tuple[list[int], list[int]]]:
        """Of `count` data sets those that each model is fitted on, and those that it is measured on."""
        every = list(range(count))
        if self.transferred:
            return [([other for other in every if other != each], [each]) for each in every]
        return [(every, every)] if together else [([each], [each]) for each in every]

    def fit(self, samples: Samples, seed: int, steps: int | None, progress: Progress) -> nn.Module:
        """Fit one model on what `samples_of` gave."""
        shots = self.method.shots
        if self.shots is None or shots is None:
            return fit_alone(self.method, samples, seed, steps, progress)
        if not self.transferred:
            return fit_alone(replace(self.method, fit=shots.fit), samples, seed, steps, progress)
        assert shots.transfer is not None
        return shots.transfer(fit_alone(self.method, samples, seed, steps, progress))


def able(methods: Mapping[str, Method], *, together: bool, shots: Sequence[int]) -> list[str]:
    """Name the methods that can be compared in a setting."""
    return [
        name
        for name, method in methods.items()
        if (method.several or not together) and all(_takes(method, count) for count in shots)
    ]


def _takes(method: Method, shots: int) -> bool:
    can = method.shots
    return can is not None and (shots >= can.fewest or can.transfer is not None)


def check_setting(entries: Sequence[Entry], known: Mapping[str, Method], sets: int, *, together: bool) -> None:
    """Refuse a setting that a method, or the number of data sets, does not allow.

    Args:
        entries: what was asked for.
        known: all methods of the backbone.
        sets: how many data sets.
        together: whether one model of all was asked for.

    Raises:
        WishError: it is refused.

    """
    if together and sets < 2:
        raise WishError("--together: is one model of several data sets, and one was given. Give two at least.")
    for name, method, shots in ((each.name, each.method, each.shots) for each in entries):
        if together and not method.several:
            others = ", ".join(able(known, together=True, shots=[]))
            raise WishError(
                f"--together: {name} makes a model of one product. Leave it out; these serve several: {others}."
            )
        if shots is None:
            continue
        if not 0 <= shots <= FEWEST_PARTS:
            raise WishError(f"--shots {shots}: give 0 to {FEWEST_PARTS}, or leave it out to fit on all good pictures.")
        if not _takes(method, shots):
            others = ", ".join(able(known, together=together, shots=[shots])) or "none"
            raise WishError(f"--shots {shots}: {name} cannot be fitted on so few. Leave it out; these can: {others}.")
    if sets < 2 and (one := next((each for each in entries if each.transferred), None)):
        raise WishError(f"--shots 0: {one.name} is then fitted on the other data sets. Give two at least.")


class Joined:
    """Rows of several arrays, one array after the other, read when they are asked for."""

    def __init__(self, sources: Sequence[NDArray[Any]]) -> None:
        self._sources = sources
        self._starts = np.cumsum([0, *(source.shape[0] for source in sources)])
        self.shape = (int(self._starts[-1]), *sources[0].shape[1:])

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        rows: NDArray[np.int64] = np.asarray(np.arange(self.shape[0])[index])
        flat = rows.reshape(-1)
        found = np.empty((flat.size, *self.shape[1:]), np.float32)
        of = np.searchsorted(self._starts, flat, side="right") - 1
        for number in np.unique(of):
            chosen = of == number
            found[chosen] = self._sources[number][flat[chosen] - self._starts[number]]
        return found.reshape(*rows.shape, *self.shape[1:])


def samples_of(
    entry: Entry,
    sets: Sequence[Labelled],
    seed: int,
    trunk: onnx.ModelProto | None,
    work: Path,
    *,
    progress: Progress,
) -> Samples:
    """Give what one model of these data sets, its classes in this order, is fitted on.

    Args:
        entry: the method, with how many shots.
        sets: at one size.
        seed: of the draw of shots, and of the order in which a model of several classes meets their pictures.
        trunk: of the method's levels.
        work: an empty scratch folder.
        progress: told what is done.

    """
    method = entry.method
    if entry.shots is None or entry.transferred:
        return _join([each.samples(method.levels, method.of_scans) for each in sets], seed)
    drawn = draw([range(len(each.good)) for each in sets], entry.shots, seed)
    found = []
    for number, (data, chosen) in enumerate(zip(sets, drawn, strict=True)):
        rows = np.array(chosen, np.int64)
        if method.shots is not None and method.shots.variants:
            assert trunk is not None  # what learns from variants sees pictures
            folder = work / str(number)
            folder.mkdir()
            found.append(Samples(_maps_of_variants(data, rows, trunk, folder, progress)))
        else:
            maps = data.samples(method.levels, method.of_scans).good
            found.append(Samples([cast("NDArray[Any]", Rows(each, rows)) for each in maps]))
    return _join(found, seed)


def _maps_of_variants(
    data: Labelled, rows: NDArray[np.int64], trunk: onnx.ModelProto, folder: Path, progress: Progress
) -> Maps:
    pictures = picture_variants(torch.from_numpy(np.array(data.good[rows]))).flatten(0, 1).numpy()
    features = Features(folder, ["float"])
    tick = partial(progress, f"{data.name}: maps of shots")
    features.extract("float", trunk, pictures, exact=False, threads=data.threads, tick=tick)
    return features.maps


def _join(parts: Sequence[Samples], seed: int) -> Samples:
    """Samples of one class each as those of all, the good ones in random order (`compile.model.fit_heads`)."""
    if len(parts) == 1:
        return parts[0]
    classes = np.repeat(np.arange(len(parts)), [part.good[0].shape[0] for part in parts])
    order = np.random.default_rng(seed).permutation(len(classes))
    good = [cast("NDArray[Any]", Rows(cast("NDArray[Any]", each), order)) for each in _joined([p.good for p in parts])]
    odd = [part.covered for part in parts if part.covered is not None]
    painted = [cast("NDArray[Any]", each) for each in _joined([part.painted for part in parts])]
    return Samples(good, painted, np.concatenate(odd) if odd else None, classes[order])


def _joined(maps: Sequence[Maps]) -> list[Joined]:
    return [Joined(each) for each in zip(*maps, strict=True)]
