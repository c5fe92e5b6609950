"""Adapt a CLIP to finding defects: learn from labelled pictures of other things, once, for many products.

What is learned from are the test pictures of sets with labels, good and defective, as the publications do; whatever is
inspected later must be another set, and a comparison on the same pictures is refused.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compile.backbones.adapted import TABLE, Adapted, AdaptMethod, Record, find_adapted, hash_files, write_adapted
from compile.backbones.clip import CLIP, Source, find_clip, load_clip
from compile.data import DataError, DataSet, folder_name, read_data
from compile.evaluate import load_masks
from compile.features import load_pictures
from compile.job import Progress
from compile.methods import adaclip_fit, mvp_pclip_fit
from compile.methods.adaclip_fit import Auxiliary, fit_adaclip
from compile.methods.clip_states import GENERIC
from compile.methods.mvp_pclip import describe_object
from compile.methods.mvp_pclip_fit import LabelledViews, fit_mvp_pclip
from compile.scan_maps import load_scan_maps
from compile.wishes import LARGEST_SEED, WishError
from edge.bundle import Background, Input, ScanInput
from edge.organised_scan.views import SIDE as VIEW
from edge.scans.unit import Unit

PUBLISHED_SIDE = 518  # pixels


@dataclass(frozen=True, slots=True)
class AdaptWish:
    """What the user asked for."""

    auxiliary: Sequence[Path]
    clip: str
    output: Path
    method: AdaptMethod = "adaclip"
    word: str = GENERIC
    side: int | None = None
    dynamic: bool = False  # prompts of the image tower that depend on the picture
    passes: int | None = None  # the method's own
    batch: int | None = None  # the method's own
    seed: int = 0
    unit: Unit | None = None  # of scans; None: from what they span
    background: Background = "none"  # of scans


def adapt(wanted: AdaptWish, progress: Progress = lambda *_: None) -> Adapted:
    """Learn, and write the folder at `wanted.output`.

    Raises:
        WishError: what was asked for makes no sense.
        BackboneError: there is no such CLIP.
        DataError: a set has nothing to learn from.
        FitError: the training diverged.

    """
    source = find_clip(wanted.clip)
    side = _check(wanted, source)
    clip = load_clip(source, side)
    with tempfile.TemporaryDirectory(prefix="beltline-adapt-") as name:
        learn = _learn_from_pictures if wanted.method == "adaclip" else _learn_from_scans
        learned, files = learn(wanted, clip, side, Path(name), progress)
    record = Record(
        method=wanted.method,
        clip=str(Path(wanted.clip).resolve()) if Path(wanted.clip).is_dir() else wanted.clip,
        clip_sha256=hash_files(source.weights),
        side=side,
        word=wanted.word,
        prompting="image" if wanted.dynamic else "static",
        seed=wanted.seed,
        auxiliary=[folder_name(folder) for folder in wanted.auxiliary],
        learned_from=sorted(hash_file(file) for file in files),
    )
    write_adapted(wanted.output, record, learned)
    return find_adapted(wanted.output)


def _check(wanted: AdaptWish, clip: Source) -> int:
    """Refuse what makes no sense, and give the side of the pictures."""
    patch = clip.config.vision_config.patch_size
    scans = wanted.method == "mvp-pclip"
    side = (VIEW if scans else PUBLISHED_SIDE // patch * patch) if wanted.side is None else wanted.side
    if scans and (side != VIEW or wanted.dynamic):
        raise WishError(
            f"--method mvp-pclip: has views of {VIEW} pixels and one kind of prompts. Leave the option out."
        )
    if side % patch or not 2 * patch <= side <= 4096:
        raise WishError(f"--size {side}: give a multiple of the patch, {patch}, from {2 * patch} to 4096.")
    for option, value in (("--passes", wanted.passes), ("--batch", wanted.batch)):
        if value is not None and value < 1:
            raise WishError(f"{option} {value}: at least 1.")
    if not 0 <= wanted.seed <= LARGEST_SEED:
        raise WishError(f"--seed {wanted.seed}: give a whole number from 0 to {LARGEST_SEED}.")
    if not wanted.word.strip():
        raise WishError("--word: say what will be inspected, for example cap.")
    return side


def _learn_from_pictures(
    wanted: AdaptWish, clip: CLIP, side: int, work: Path, progress: Progress
) -> tuple[dict[str, Tensor], list[Path]]:
    """Give what was learned with the text's table, and the files learned from."""
    auxiliary, files = load_auxiliary(wanted.auxiliary, side, work, progress)
    model = fit_adaclip(
        clip,
        auxiliary,
        seed=wanted.seed,
        prompting="image" if wanted.dynamic else "static",
        passes=wanted.passes or adaclip_fit.PASSES,
        batch=wanted.batch or adaclip_fit.BATCH,
        progress=progress,
    )
    table = model.reader(adaclip_fit.tokens_of(clip, [wanted.word]))[0]
    return {**model.learned(), TABLE: table}, files


def _learn_from_scans(
    wanted: AdaptWish, clip: CLIP, _: int, work: Path, progress: Progress
) -> tuple[dict[str, Tensor], list[Path]]:
    labelled, files = load_views(wanted, work, progress)
    model = fit_mvp_pclip(
        clip,
        labelled,
        seed=wanted.seed,
        passes=wanted.passes or mvp_pclip_fit.PASSES,
        batch=wanted.batch or mvp_pclip_fit.BATCH,
        progress=progress,
    )
    table = model.reader(describe_object(clip, [wanted.word]))[0]
    return {**model.learned(), TABLE: table}, files


def load_auxiliary(folders: Sequence[Path], side: int, work: Path, progress: Progress) -> tuple[Auxiliary, list[Path]]:
    """Load the labelled test pictures of sets, each set's word being its folder's name, and name their files.

    Raises:
        DataError: a set cannot be read, or has no defect whose mask is known.

    """
    pictures, masks, word_of, files = [], [], [], []
    for number, folder in enumerate(folders):
        data = read_data(folder, tick=partial(progress, f"{folder_name(folder)}: read"))
        spec = Input(height=side, width=side, source=data.pictures)
        paths = [image.path for image in data.test]
        own, kept, _ = load_pictures(paths, spec, work / f"{number}.bin")
        marked, known = _masks(data, kept, side)
        pictures.append(own[known])
        masks.append(marked)
        word_of.append(np.full(len(known), number))
        files += [paths[kept[i]] for i in known]
    words = [folder_name(folder) for folder in folders]
    return Auxiliary(np.concatenate(pictures), np.concatenate(masks), words, np.concatenate(word_of)), files


def load_views(wanted: AdaptWish, work: Path, progress: Progress) -> tuple[LabelledViews, list[Path]]:
    """Load the labelled test scans of sets as views; raises as `load_auxiliary` does."""
    views, index, masks, word_of, files = [], [], [], [], []
    for number, folder in enumerate(wanted.auxiliary):
        step = partial(progress, f"{folder_name(folder)}: read")
        data = read_data(folder, tick=step, unit=wanted.unit)
        paths = [image.path for image in data.test]
        source = data.scanned.source(data.good)
        spec = ScanInput(height=VIEW, width=VIEW, background=wanted.background, source=source)
        (work / str(number)).mkdir()
        found = load_scan_maps(paths, data.scanned, spec, ("views", "view_index"), work / str(number), tick=step)
        marked, known = _masks(data, found.kept, VIEW)
        views.append(found.maps["views"][known])
        index.append(found.maps["view_index"][known])
        masks.append(marked)
        word_of.append(np.full(len(known), number))
        files += [paths[found.kept[i]] for i in known]
    words = [folder_name(folder) for folder in wanted.auxiliary]
    seen, where, marks, which = (np.concatenate(each) for each in (views, index, masks, word_of))
    return LabelledViews(seen, where, marks, words, which), files


def _masks(data: DataSet, kept: Sequence[int] | NDArray[np.int64], side: int) -> tuple[NDArray[np.bool_], list[int]]:
    """Masks [n, side, side] of those kept whose mask is known, and which of them these are.

    A defect without a mask teaches nothing and is left out; one that is smaller than a pixel fills it.
    """
    masks = load_masks([data.test[i] for i in kept], side, "paper_nonzero")
    known = [i for i, mask in enumerate(masks) if mask is not None]
    marked = np.array([masks[i] for i in known], bool)
    if not marked.any():
        raise DataError(f"{data.folder}: no test picture has a defect with a mask, and that is what is learned from.")
    return marked, known


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_unseen(source: Adapted, sets: Sequence[DataSet]) -> None:
    """Refuse to measure on what was learned from.

    Raises:
        WishError: a set has such pictures.

    """
    known = set(source.record.learned_from)
    for data in sets:
        if count := sum(hash_file(image.path) in known for image in data.test):
            raise WishError(
                f"DATA: {count} test pictures of {data.folder} were learned from when {source.folder} was adapted. "
                "Measure on another set, or adapt without this one."
            )
