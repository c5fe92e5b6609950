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
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compile.backbones.adapted import TABLE, Adapted, AdaptMethod, Record, find_adapted, hash_files, write_adapted
from compile.backbones.clip import Source, find_clip, load_clip
from compile.data import DataError, DataSet, folder_name, read_data
from compile.evaluate import load_masks
from compile.features import load_pictures
from compile.job import Progress
from compile.methods.adaclip_fit import BATCH, PASSES, Auxiliary, fit_adaclip, tokens_of
from compile.methods.clip_states import GENERIC
from compile.wishes import LARGEST_SEED, WishError
from edge.bundle import Input

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
    passes: int = PASSES
    batch: int = BATCH
    seed: int = 0


def adapt(wanted: AdaptWish, progress: Progress = lambda *_: None) -> Adapted:
    """Learn, and write the folder at `wanted.output`.

    Raises:
        WishError: what was asked for makes no sense.
        BackboneError: there is no such CLIP.
        DataError: a set has nothing to learn from.
        FitError: the training diverged.

    """
    clip = find_clip(wanted.clip)
    side = _check(wanted, clip)
    loaded = load_clip(clip, side)
    prompting: Literal["image", "static"] = "image" if wanted.dynamic else "static"
    with tempfile.TemporaryDirectory(prefix="beltline-adapt-") as name:
        auxiliary, files = load_auxiliary(wanted.auxiliary, side, Path(name), progress)
        model = fit_adaclip(
            loaded,
            auxiliary,
            seed=wanted.seed,
            prompting=prompting,
            passes=wanted.passes,
            batch=wanted.batch,
            progress=progress,
        )
    record = Record(
        method=wanted.method,
        clip=str(Path(wanted.clip).resolve()) if Path(wanted.clip).is_dir() else wanted.clip,
        clip_sha256=hash_files(clip.weights),
        side=side,
        word=wanted.word,
        prompting=prompting,
        seed=wanted.seed,
        auxiliary=[folder_name(folder) for folder in wanted.auxiliary],
        learned_from=sorted(hash_file(file) for file in files),
    )
    table = model.reader(tokens_of(loaded, [wanted.word]))[0]
    write_adapted(wanted.output, record, {**model.learned(), TABLE: table})
    return find_adapted(wanted.output)


def _check(wanted: AdaptWish, clip: Source) -> int:
    """Refuse what makes no sense, and give the side of the pictures."""
    patch = clip.config.vision_config.patch_size
    side = PUBLISHED_SIDE // patch * patch if wanted.side is None else wanted.side
    if side % patch or not 2 * patch <= side <= 4096:
        raise WishError(f"--size {side}: give a multiple of the patch, {patch}, from {2 * patch} to 4096.")
    for option, value in (("--passes", wanted.passes), ("--batch", wanted.batch)):
        if value < 1:
            raise WishError(f"{option} {value}: at least 1.")
    if not 0 <= wanted.seed <= LARGEST_SEED:
        raise WishError(f"--seed {wanted.seed}: give a whole number from 0 to {LARGEST_SEED}.")
    if not wanted.word.strip():
        raise WishError("--word: say what the pictures show, for example cap.")
    return side


def load_auxiliary(folders: Sequence[Path], side: int, work: Path, progress: Progress) -> tuple[Auxiliary, list[Path]]:
    """Load the labelled test pictures of sets, each set's word being its folder's name, and name their files.

    Raises:
        DataError: a set cannot be read, or has no defect whose mask is known.

    """
    pictures, masks, word_of, files = [], [], [], []
    for number, folder in enumerate(folders):
        data = read_data(folder, tick=partial(progress, f"{folder_name(folder)}: read"))
        own, marked, paths = _load_labelled(data, side, work / f"{number}.bin")
        pictures.append(own)
        masks.append(marked)
        word_of.append(np.full(len(own), number))
        files += paths
    words = [folder_name(folder) for folder in folders]
    return Auxiliary(np.concatenate(pictures), np.concatenate(masks), words, np.concatenate(word_of)), files


def _load_labelled(data: DataSet, side: int, file: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_], list[Path]]:
    """Bring a set's test pictures and masks to a size; a defect without a mask teaches nothing and is left out."""
    spec = Input(height=side, width=side, source=data.pictures)
    images = list(data.test)
    pictures, kept, _ = load_pictures([image.path for image in images], spec, file)
    images = [images[i] for i in kept]
    masks = load_masks(images, side, "paper_nonzero")
    known = [i for i, mask in enumerate(masks) if mask is not None]
    marked = np.array([masks[i] for i in known], bool)
    if not marked.any():
        raise DataError(f"{data.folder}: no test picture has a defect with a mask, and that is what is learned from.")
    return pictures[known], marked, [images[i].path for i in known]


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
